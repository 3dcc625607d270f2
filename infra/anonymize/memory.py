"""What is known about texts already seen: a conversation comes again, whole, with its every call.

Bounded, and safe to use from several threads without a lock: each step on a dictionary is atomic, and
an entry that two threads make, or that one of them drops, is only made once more.
"""

from __future__ import annotations

import hashlib
from typing import Any, Generic, TypeVar

import orjson

V = TypeVar("V")

SHORT_KEY_BYTES = 64


class Generations(Generic[V]):
    """A cache of two generations: what is not asked for while the young one fills up is forgotten.

    Args:
        most: entries of one generation.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._young: dict[Any, V] = {}
        self._old: dict[Any, V] = {}

    def get(self, key: Any) -> V | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Any, value: V) -> None:
        young = self._young
        young[key] = value
        if len(young) > self._most:
            self._old, self._young = young, {}

    def clear(self) -> None:
        self._young, self._old = {}, {}


def packed(value: Any) -> bytes | None:
    """A JSON value as bytes, or None for one that has no exact form (whole numbers beyond 64 bits)."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return None


def key_of(data: bytes) -> bytes:
    """A short stand-in for the bytes: themselves, or a digest of 160 bits."""
    if len(data) <= SHORT_KEY_BYTES:
        return data
    return hashlib.blake2b(data, digest_size=20).digest()
