"""Where foreign logs lie: a file, a folder, a bucket, or our own store. Only ever read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from infra.objects.store import ObjectInfo, ObjectMissing, ObjectStore, ObjectStoreError
from infra.settings.serving import Storage

OWN_STORE = "store:"
"""The location of our own object store, for lines that ingest could not read."""
UNREADABLE = "unreadable"
MAX_KNOWN = 20_000


class Source(Protocol):
    location: str
    """The same for the same place: a folder's path is absolute."""

    def list(self) -> Iterator[ObjectInfo]:
        """What there is to read, in lexicographic order. Raises ObjectStoreError."""
        ...

    def open(self, key: str) -> BinaryIO:
        """Raises ObjectMissing, ObjectStoreError."""
        ...

    def info(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing, ObjectStoreError."""
        ...


def open_source(location: str, storage: Storage, own: ObjectStore) -> Source:
    """A file, a folder, or ``s3://bucket/prefix`` (with ``[storage]``'s endpoint and credentials).

    Raises:
        ObjectStoreError: there is nothing, or the location is of another kind.
    """
    if location == OWN_STORE:
        return StoreSource(location, own)
    parts = urlsplit(location)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ObjectStoreError("the location names no bucket: use s3://bucket/prefix")
        from infra.objects.s3 import open_s3

        # The prefix may be the whole key of one object, so it is listed by, not put before keys.
        return StoreSource(
            location, open_s3(storage, bucket=parts.netloc, prefix=""), parts.path.lstrip("/")
        )
    if parts.scheme not in ("", "file") and len(parts.scheme) > 1:
        raise ObjectStoreError(
            f"the location begins with {parts.scheme}://: use a file, a folder or s3://bucket/prefix"
        )
    return FolderSource(location, Path(parts.path if parts.scheme == "file" else location))


class StoreSource:
    """The objects of a store under a prefix."""

    def __init__(self, location: str, store: ObjectStore, prefix: str = "") -> None:
        self.location = location
        self._store, self._prefix = store, prefix

    def list(self) -> Iterator[ObjectInfo]:
        return self._store.list(self._prefix)

    def open(self, key: str) -> BinaryIO:
        return self._store.open(key)

    def info(self, key: str) -> ObjectInfo:
        return self._store.info(key)


class FolderSource:
    """A file, or every file below a folder but hidden ones. Keys are paths below it.

    An etag is the digest of the content, so that a copied or touched file is the same file.
    """

    def __init__(self, location: str, path: Path) -> None:
        # The same wherever it is read again from, also by ``../exports``.
        self.location = os.path.abspath(path)  # noqa: PTH100 - a link keeps its own name
        path = Path(self.location)
        self._file = path if path.is_file() else None
        self._root = path.parent if self._file else path
        self._known: dict[str, tuple[tuple[int, int, int], str]] = {}
        if self._file is None and not path.is_dir():
            raise ObjectMissing(f"there is no file or folder {location}")

    def list(self) -> Iterator[ObjectInfo]:
        if self._file is not None:
            yield self._listed(self._file)
            return
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder) / name
                if not name.startswith(".") and path.is_file():
                    yield self._listed(path)

    def open(self, key: str) -> BinaryIO:
        return self._open(key)

    def _open(self, key: str) -> BufferedReader:
        path = self._root / key
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise ObjectMissing(f"{key} is not below {self.location}")
        try:
            return path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ObjectMissing(f"there is no file {path}") from None
        except OSError as error:
            raise ObjectStoreError(f"{path} cannot be read: {error.strerror}") from error

    def info(self, key: str) -> ObjectInfo:
        with self._open(key) as stream:
            found = os.fstat(stream.fileno())
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            known = self._known.get(key)
            if known is None or known[0] != stamp:
                try:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                except OSError as error:
                    raise ObjectStoreError(f"{key} cannot be read: {error.strerror}") from error
                if len(self._known) >= MAX_KNOWN:
                    self._known.clear()
                known = self._known[key] = (stamp, digest)
        return ObjectInfo(key, found.st_size, known[1])

    def _listed(self, path: Path) -> ObjectInfo:
        """What cannot be read is listed too: reading it then fails, and is counted."""
        name = os.fsencode(path.relative_to(self._root)).decode("utf-8", "replace")
        try:
            return self.info(name)
        except ObjectStoreError:
            return ObjectInfo(name, 0, UNREADABLE)
