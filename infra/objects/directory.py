"""An object store in a local directory: the embedded default. One machine, any number of processes.

An object is a file of the key's name, so the folder can be read with any tool. A write goes to a
temporary file, to the disk, and under its name in one step; a kill at any moment leaves the old
object or the new one. Unlike on S3, ``a`` and ``a/b`` cannot both be objects.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from uuid import uuid4

from infra.files import sync_folder
from infra.objects.keys import RESERVED, check_key
from infra.objects.store import (
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectRefused,
    ObjectStoreError,
)

DEFAULT_MAX_OBJECT_BYTES = 256 << 20
LOCK_STRIPES = 256
STALE_TEMPORARY_SECONDS = 86_400
MAX_CACHED_ETAGS = 20_000
SETTLED_SECONDS = 2

_Stamp = tuple[int, int, int]


class DirectoryStore:
    """``ObjectStore`` in a folder, which is made if it is absent.

    Args:
        root: the folder.
        max_object_bytes: a larger object is refused on write, and on ``get`` (``open`` streams it).
        lock_timeout_seconds: longest wait for another process that writes the same key.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        max_object_bytes: int = DEFAULT_MAX_OBJECT_BYTES,
        lock_timeout_seconds: float = 30,
    ) -> None:
        self.root = Path(root).absolute()
        self.max_object_bytes = max_object_bytes
        self.lock_timeout_seconds = lock_timeout_seconds
        self._temporary = self.root / RESERVED / "temporary"
        self._locks = self.root / RESERVED / "locks"
        self._etags: OrderedDict[str, tuple[_Stamp, str]] = OrderedDict()
        self._etags_lock = Lock()
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _kind(error)(
                f"cannot use {self.root} as object store: {error.strerror}. "
                "Check [storage] url and the folder's permissions"
            ) from error
        self._sweep()

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self.root)!r})"

    def put(self, key: str, data: bytes) -> ObjectInfo:
        path = self._path(key)
        with (
            self._written(key, data) as temporary,
            self._locked(key),
            _explained(key, writing=True),
        ):
            self._make_parent(path)
            os.replace(temporary, path)  # noqa: PTH105
            sync_folder(path.parent)
        return _info(key, data)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        path = self._path(key)
        if path.is_file():
            raise ObjectExists(f"the object {key} is already there, and is written only once")
        with (
            self._written(key, data) as temporary,
            self._locked(key),
            _explained(key, writing=True),
        ):
            self._make_parent(path)
            try:
                # Unlike a rename, a link never takes another's place.
                os.link(temporary, path)
            except FileExistsError:
                if path.is_dir():
                    raise
                raise ObjectExists(
                    f"the object {key} is already there, and is written only once"
                ) from None
            sync_folder(path.parent)
        return _info(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> ObjectInfo:
        path = self._path(key)
        with self._written(key, data) as temporary, self._locked(key), _explained(key):
            if self.info(key).etag != etag:
                raise ObjectChanged(
                    f"the object {key} has changed since it was read: read it again"
                )
            os.replace(temporary, path)  # noqa: PTH105
            sync_folder(path.parent)
        return _info(key, data)

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            data = stream.read(self.max_object_bytes + 1)
        if len(data) > self.max_object_bytes:
            raise ObjectStoreError(
                f"the object {key} is larger than {self.max_object_bytes} bytes "
                "([storage] max_object_bytes): read it by open()"
            )
        return data

    def open(self, key: str) -> BinaryIO:
        with _explained(key):
            return self._path(key).open("rb")

    def info(self, key: str) -> ObjectInfo:
        with self.open(key) as stream:
            found = os.fstat(stream.fileno())
            return ObjectInfo(key, found.st_size, self._etag(key, found, stream))

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        for key in self._keys(self.root, "", prefix, after):
            with suppress(ObjectMissing):  # deleted while we listed
                yield self.info(key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._locked(key), suppress(ObjectMissing), _explained(key):
            if not path.is_dir():
                path.unlink()
                sync_folder(path.parent)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _keys(self, folder: Path, base: str, prefix: str, after: str) -> Iterator[str]:
        try:
            # A folder's keys all begin with its name and a slash: that is its place in the order.
            found = sorted(
                entry.name + "/" * entry.is_dir(follow_symlinks=False)
                for entry in os.scandir(folder)
                if base or entry.name != RESERVED
            )
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            raise ObjectRefused(
                f"the folder {folder} cannot be listed: {error.strerror}"
            ) from error
        for name in found:
            key = base + name
            if not name.endswith("/"):
                if key.startswith(prefix) and key > after:
                    yield key
            elif _overlaps(key, prefix) and (key >= after or after.startswith(key)):
                yield from self._keys(folder / name, key, prefix, after)

    def _etag(self, key: str, found: os.stat_result, stream: BinaryIO) -> str:
        """sha256 of the content; remembered while the file is the same one."""
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        with self._etags_lock:
            cached = self._etags.get(key)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        etag = digest.hexdigest()
        if time.time() - found.st_mtime < SETTLED_SECONDS:
            # File times are coarse: a quick rewrite could look like this same file.
            return etag
        with self._etags_lock:
            self._etags[key] = (stamp, etag)
            self._etags.move_to_end(key)
            while len(self._etags) > MAX_CACHED_ETAGS:
                self._etags.popitem(last=False)
        return etag

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[Path]:
        """A temporary file with the data on the disk; gone afterwards, moved or not."""
        if len(data) > self.max_object_bytes:
            raise ObjectStoreError(
                f"the object {key} has {len(data)} bytes, above the {self.max_object_bytes} of "
                "[storage] max_object_bytes: write it in parts, or raise the bound"
            )
        path = self._temporary / uuid4().hex
        try:
            with _explained(key), path.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Writers of one key take turns. The kernel frees the lock of a process that dies."""
        stripe = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % LOCK_STRIPES
        with (self._locks / f"{stripe:03d}").open("ab") as stream:
            deadline = time.monotonic() + self.lock_timeout_seconds
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise ObjectStoreError(
                            f"another process has held the lock on {key} for "
                            f"{self.lock_timeout_seconds:g} s: is one stopped?"
                        ) from None
                    time.sleep(0.002)
            yield

    def _make_parent(self, path: Path) -> None:
        missing = []
        folder = path.parent
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            made.mkdir(exist_ok=True)
            sync_folder(made.parent)

    def _sweep(self) -> None:
        """Remove what killed writers left, old enough that nobody still writes it."""
        limit = time.time() - STALE_TEMPORARY_SECONDS
        for entry in os.scandir(self._temporary):
            with suppress(FileNotFoundError):
                if entry.stat().st_mtime < limit:
                    Path(entry.path).unlink(missing_ok=True)


def _overlaps(folder: str, prefix: str) -> bool:
    return folder.startswith(prefix) or prefix.startswith(folder)


def _info(key: str, data: bytes) -> ObjectInfo:
    return ObjectInfo(key, len(data), hashlib.sha256(data).hexdigest())


@contextmanager
def _explained(key: str, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        if not writing:
            raise ObjectMissing(f"no object under the key {key}") from None
        raise ObjectStoreError(
            f"the object {key} cannot be kept in a directory beside the ones already there: "
            "one key would be the folder of the other"
        ) from None
    except FileNotFoundError:
        raise ObjectMissing(f"no object under the key {key}") from None
    except OSError as error:
        raise _kind(error)(f"the object {key} failed: {error.strerror}") from error


def _kind(error: OSError) -> type[ObjectStoreError]:
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return ObjectRefused if refused else ObjectStoreError
