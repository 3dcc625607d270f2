"""The object store protocol. Every implementation passes ``tests/contracts/test_object_store.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol


class ObjectStoreError(Exception):
    """The store could not be reached or refused; the message says which key and what to do."""


class ObjectRefused(ObjectStoreError):
    """The store answers and lets us not: a key that was revoked or ran out, a policy, permissions."""


class ObjectMissing(ObjectStoreError):
    """No object under that key."""


class ObjectExists(ObjectStoreError):
    """A create found an object already there (immutable keys are written once)."""


class ObjectChanged(ObjectStoreError):
    """A compare-and-swap found another etag than the one expected."""


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size: int
    """bytes"""
    etag: str


class ObjectStore(Protocol):
    """Keys are relative POSIX paths without ``..``; listing is in lexicographic order."""

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write or overwrite, atomically: a reader sees the old object or the new one, whole."""
        ...

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write only if absent (If-None-Match: *). Raises ObjectExists."""
        ...

    def replace(self, key: str, data: bytes, etag: str) -> ObjectInfo:
        """Write only if the current etag is ``etag`` (If-Match). Raises ObjectChanged, ObjectMissing."""
        ...

    def get(self, key: str) -> bytes:
        """Raises ObjectMissing."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A readable binary stream in constant memory. Raises ObjectMissing."""
        ...

    def info(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""
        ...

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix`` and sorts after ``after``; any number of them."""
        ...

    def delete(self, key: str) -> None:
        """Deleting what is absent is not an error."""
        ...
