"""An append-only spool on local disk: a record is safe when ``append`` returns.

One folder per running gateway, held by a file lock, so that two gateways on one machine never write
into the same files, and so that what a dead one left behind is found and shipped by the next::

    <spool>/<writer>/lock            held while the gateway lives
                    /sequence        the next object number, raised before it is used
                    /open-<n>.log    framed lines, appended
                    /ready-<n>-<hour>.jsonl.zst    the very bytes of the object to create

A line is ``<crc32> <kind> <hour> <id> <json>``, so that sealing moves bytes and parses nothing. A
call whose second opinion (shadow, audit) is still being gathered is written at once as *provisional*
and again as *final*; sealing keeps the final one, or carries the provisional one over into the next
file while its final one may still come. After a crash a provisional record counts as final.
``kill -9`` at any point loses nothing that was appended, and nothing is shipped twice: an object's
bytes are fixed on disk before the first attempt to create it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import zstandard

from infra.calls.codec import COMPRESSION_LEVEL, encode_line, log_key
from infra.calls.record import LogRecord
from infra.files import sync_folder

logger = logging.getLogger(__name__)

FINAL, PROVISIONAL = b"F", b"P"
_HOUR = "%Y%m%dT%H"
FSYNC_SECONDS = 0.2


class SpoolError(Exception):
    """The record could not be written: disk full or gone. The message says which."""


class Entry(NamedTuple):
    """One line of an open file."""

    kind: bytes
    hour: bytes
    id: str
    line: bytes
    """The record as JSON, with its newline."""


class Spool:
    """One gateway's part of the spool. ``append`` and ``seal`` are safe from several threads.

    Args:
        root: the spool folder, shared by all gateways of this machine.

    Raises:
        OSError: the folder cannot be made or locked.
    """

    def __init__(self, root: Path) -> None:
        self._lock = threading.Lock()
        self.folder, self._guard = _claim_any(root)
        self.root = root
        self.writer = self.folder.name
        self._file: int | None = None
        self._number = -1
        self._size = 0
        self._count = 0
        self._torn = False
        self._pending: set[str] = set()
        # A file that was given up for sealing and could not be made ready, with what was carried on.
        self._stuck: tuple[int, frozenset[str]] | None = None
        self._synced = time.monotonic()
        _recover(self.folder)

    @property
    def size_bytes(self) -> int:
        """Bytes in the open file."""
        return self._size

    @property
    def count(self) -> int:
        """Lines in the open file."""
        return self._count

    def waiting(self) -> int:
        """Objects made and not yet shipped."""
        return len(ready_files(self.folder))

    def append(self, record: LogRecord, *, provisional: bool = False) -> None:
        """Write one record. When this returns, a crash of this process does not lose it.

        Raises SpoolError when the disk will not take it; the spool stays usable.
        """
        entry = _entry(record, PROVISIONAL if provisional else FINAL)
        name, line = entry.id, _frame(entry)
        with self._lock:
            if provisional:
                self._pending.add(name)
            else:
                self._pending.discard(name)
            try:
                self._write(line)
                self._sync(force=False)
            except OSError as error:
                raise SpoolError(f"the spool at {self.folder} takes no record: {error}") from error

    def sync(self) -> None:
        """Push what was appended to the disk itself (a power cut, not just a crash)."""
        with self._lock:
            self._sync(force=True)

    def seal(self, *, last: bool = False) -> Path | None:
        """Turn the open file into an object ready to ship; None when there is nothing in it.

        Args:
            last: nothing more will come: provisional records are final as they are.

        Raises SpoolError when the disk will not take it; nothing is lost, try again later.
        """
        with self._lock:
            try:
                self._unstick()
                if self._file is None or self._count == 0:
                    return None
                return self._seal(last)
            except OSError as error:
                raise SpoolError(f"the spool at {self.folder} is stuck: {error}") from error

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._guard.release()

    def _seal(self, last: bool) -> Path | None:
        old_file, old_number = self._file, self._number
        assert old_file is not None
        os.fsync(old_file)
        settled, carried = _settled(
            _read(self.folder / _open_name(old_number)), set() if last else self._pending
        )
        # The carried records are safe in the next file before the old one is given up.
        self._file = None
        if carried:
            try:
                for entry in carried:
                    self._write(_frame(entry))
                assert self._file is not None
                os.fsync(self._file)
            except OSError:
                if self._file is not None:
                    os.close(self._file)
                    (self.folder / _open_name(self._number)).unlink(missing_ok=True)
                self._file, self._number = old_file, old_number
                raise
        else:
            self._number, self._size, self._count = -1, 0, 0
        os.close(old_file)
        self._stuck = old_number, frozenset(entry.id for entry in carried)
        path = _make_ready(self.folder, old_number, settled)
        self._stuck = None
        return path

    def _unstick(self) -> None:
        if self._stuck is not None:
            number, carried = self._stuck
            if (self.folder / _open_name(number)).exists():
                settled, _ = _settled(_read(self.folder / _open_name(number)), carried)
                _make_ready(self.folder, number, settled)
            self._stuck = None

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._number = _next_number(self.folder)
            path = self.folder / _open_name(self._number)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._size, self._count, self._torn = 0, 0, False
            sync_folder(self.folder)
        if self._torn:
            line = b"\n" + line  # ends what an earlier failure left half-written
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            if written:
                try:
                    os.ftruncate(self._file, self._size)
                except OSError:
                    self._size += written
                    self._torn = True
            raise
        self._torn = False
        self._size += len(line)
        self._count += 1

    def _sync(self, force: bool) -> None:
        now = time.monotonic()
        if self._file is not None and (force or now - self._synced >= FSYNC_SECONDS):
            os.fsync(self._file)
            self._synced = now


def ready_files(folder: Path) -> list[Path]:
    """Objects of one writer's folder that wait to be shipped, oldest first."""
    return sorted(folder.glob("ready-*.jsonl.zst"))


def object_key(path: Path) -> str:
    """The key of a ready file: fixed by its name and its writer's."""
    _, number, hour = path.name.removesuffix(".jsonl.zst").split("-")
    moment = datetime.strptime(hour, _HOUR).replace(tzinfo=UTC)
    return log_key(moment, path.parent.name, int(number))


def renumber(path: Path) -> Path:
    """Give a ready file the next free number, for when its key is taken by other content."""
    _, _, hour = path.name.removesuffix(".jsonl.zst").split("-")
    return path.rename(path.with_name(_ready_name(_next_number(path.parent), hour)))


def adopt_orphans(root: Path) -> Iterator[tuple[Path, FolderLock]]:
    """Folders of gateways that are gone, recovered and locked; the caller releases each lock."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        guard = FolderLock.take(folder) if folder.is_dir() else None
        if guard is not None:
            try:
                _recover(folder)
            except BaseException:
                guard.release()
                raise
            yield folder, guard


class FolderLock:
    """An exclusive lock on a folder that ends with the process, however that ends."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def take(cls, folder: Path) -> FolderLock | None:
        """None when somebody else holds it."""
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        return cls(file)

    def release(self) -> None:
        os.close(self._file)


def _claim_any(root: Path) -> tuple[Path, FolderLock]:
    """The folder of a writer that is gone, or a new one. Its name is unique over all machines."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in sorted(root.glob("gateway-*")):
        if folder.is_dir() and (guard := FolderLock.take(folder)) is not None:
            return folder, guard
    folder = root / f"gateway-{secrets.token_hex(6)}"
    folder.mkdir(mode=0o700)
    guard = FolderLock.take(folder)
    if guard is None:
        # Another gateway came by between the two steps and took it for an orphan.
        return _claim_any(root)
    return folder, guard


def _recover(folder: Path) -> None:
    """Make what a crash left into ready objects. Nobody else writes: the lock is held."""
    for part in folder.glob("*.part"):
        part.unlink()
    done = {int(path.name.split("-")[1]) for path in ready_files(folder)}
    left: list[tuple[int, list[Entry]]] = []
    for path in sorted(folder.glob("open-*.log")):
        number = int(path.name.removeprefix("open-").removesuffix(".log"))
        if number in done:
            # Made ready already, and what had to be carried over is in a later file.
            path.unlink()
            continue
        left.append((number, list(_read(path))))
    # A record carried over but not yet given up is in two files: the later one has the last word.
    latest: dict[str, tuple[int, bytes]] = {}
    for number, entries in left:
        for entry in entries:
            if _overrides(entry.kind, latest.get(entry.id, (0, PROVISIONAL))[1]):
                latest[entry.id] = (number, entry.kind)
    for number, entries in left:
        mine = {entry.id: entry for entry in entries if latest[entry.id] == (number, entry.kind)}
        _make_ready(folder, number, list(mine.values()))


def _settled(entries: Iterator[Entry], pending: Set[str]) -> tuple[list[Entry], list[Entry]]:
    """Entries to ship now, in the order of their first line, and those still waited for."""
    last: dict[str, Entry] = {}
    for entry in entries:
        if entry.id not in last or _overrides(entry.kind, last[entry.id].kind):
            last[entry.id] = entry
    ship = [e for e in last.values() if e.kind == FINAL or e.id not in pending]
    carry = [e for e in last.values() if e.kind == PROVISIONAL and e.id in pending]
    return ship, carry


def _overrides(kind: bytes, before: bytes) -> bool:
    return kind == FINAL or before == PROVISIONAL


def _make_ready(folder: Path, number: int, entries: list[Entry]) -> Path | None:
    """Fix the object's bytes on disk, then give up the open file."""
    path = None
    if entries:
        path = folder / _ready_name(number, entries[0].hour.decode())
        part = path.with_suffix(".part")
        compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
        with part.open("wb") as file:
            file.write(compressor.compress(b"".join(entry.line for entry in entries)))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(folder)
    (folder / _open_name(number)).unlink(missing_ok=True)
    return path


def _entry(record: LogRecord, kind: bytes) -> Entry:
    hour = record.time.astimezone(UTC).strftime(_HOUR).encode()
    return Entry(kind, hour, quote(record.id), encode_line(record))


def _next_number(folder: Path) -> int:
    """A number never used before by this writer: raised on disk before it is used."""
    path = folder / "sequence"
    try:
        number = int(path.read_text())
    except (FileNotFoundError, ValueError):
        used = [int(name.name.split("-")[1].split(".")[0]) for name in folder.glob("*-[0-9]*")]
        number = max(used, default=-1) + 1
    part = folder / "sequence.part"
    with part.open("w") as file:
        file.write(str(number + 1))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return number


def _open_name(number: int) -> str:
    return f"open-{number:010d}.log"


def _ready_name(number: int, hour: str) -> str:
    return f"ready-{number:010d}-{hour}.jsonl.zst"


def _frame(entry: Entry) -> bytes:
    body = b" ".join((entry.kind, entry.hour, entry.id.encode(), entry.line))
    return b"%08x " % zlib.crc32(body) + body


def _read(path: Path) -> Iterator[Entry]:
    """The whole lines of an open file. What was torn by a crash was never acknowledged."""
    damaged = 0
    with path.open("rb") as file:
        for line in file:
            crc, _, body = line.partition(b" ")
            if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
                damaged += line.strip() != b""
                continue
            kind, hour, name, content = body.split(b" ", 3)
            yield Entry(kind, hour, name.decode(), content)
    if damaged:
        logger.warning("%s has %d half-written lines, left out", path.name, damaged)
