"""The structural part of a request, remembered: agents send the same tools and system prompt again.

A signature reads every schema and every word of the system prompt. Here it is looked up by what it
is made from; only a structure that was not seen lately is read.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from infra.prompting.answers import uncheckable
from infra.tasks.signature import signature, system_text
from serving.gateway.routes import frame_of

T = TypeVar("T")
MAX_STRUCTURES = 4096


@dataclass
class Structure:
    """What requests with the same tools, response format and system prompt have in common."""

    signature: str
    """``infra.tasks.signature.Signature.digest``."""
    frame: str
    """See ``frame_of``."""
    _uncheckable: bool | None = None

    def uncheckable(self, request: Mapping[str, Any]) -> bool:
        """``infra.prompting.answers.uncheckable`` of a request that has this structure; asked once."""
        if self._uncheckable is None:
            self._uncheckable = uncheckable(request)
        return self._uncheckable


class Remembered(Generic[T]):
    """What was made last, by a key of bounded size; the least recently used goes first.

    For one thread: the event loop's.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[bytes, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes, make: Callable[[], T]) -> T:
        """The value of ``key``, made when it is not known."""
        try:
            value = self._known[key]
        except KeyError:
            value = self._known[key] = make()
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return value


class Structures:
    """``of(request)`` is the structure of a chat-completion request; never raises."""

    def __init__(self, most: int = MAX_STRUCTURES) -> None:
        self._known: Remembered[Structure] = Remembered(most)

    def of(self, request: Mapping[str, Any]) -> Structure:
        get = request.get
        parts = (
            get("tools"),
            get("functions"),
            get("response_format"),
            system_text(get("messages")),
        )
        try:
            key = digest(orjson.dumps(parts))
        except TypeError:
            return read(request)  # not what a JSON body gives: nothing that comes often
        return self._known.get(key, lambda: read(request))


def read(request: Mapping[str, Any]) -> Structure:
    """The structure, from the signature."""
    found = signature(request)
    frame = frame_of(found.tools, found.response_kind, found.response_name)
    return Structure(found.digest, frame)


def digest(text: bytes) -> bytes:
    """32 bytes that stand for a text of any length; no two texts share them, by chance or on purpose."""
    return hashlib.sha256(text).digest()
