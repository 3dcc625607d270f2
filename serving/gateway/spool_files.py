"""The files of one writer's spool folder: its lock, the open file, framed lines, ready objects."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import zstandard

from infra.calls.codec import COMPRESSION_LEVEL, StoredLine, log_key
from infra.files import sync_folder

logger = logging.getLogger(__name__)

FINAL, PROVISIONAL = b"F", b"P"
_HOUR = "%Y%m%dT%H"


class Entry(NamedTuple):
    """One line of an open file."""

    kind: bytes
    hour: bytes
    id: str
    line: bytes
    """The record as JSON, with its newline."""


class OpenFile:
    """The file that is appended to. Raises OSError when it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.number = next_number(folder)
        self.size = 0
        self.count = 0
        self._torn = False
        self._path = folder / open_name(self.number)
        self.file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        sync_folder(folder)

    def write(self, line: bytes) -> None:
        """All of it or, as far as the disk allows, nothing. Raises OSError."""
        if self._torn:
            line = b"\n" + line  # ends what an earlier failure left half-written
        written = 0
        try:
            while written < len(line):
                written += os.write(self.file, line[written:] if written else line)
        except OSError:
            if written:
                try:
                    os.ftruncate(self.file, self.size)
                except OSError:
                    self.size += written
                    self._torn = True
            raise
        self._torn = False
        self.size += len(line)
        self.count += 1

    def close(self) -> None:
        os.close(self.file)

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)


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
    return path.rename(path.with_name(ready_name(next_number(path.parent), hour)))


class FolderLock:
    """An exclusive lock on a folder that ends with the process, however that ends."""

    def __init__(self, file: int) -> None:
        self.file = file

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
        os.close(self.file)


def claim_any(root: Path) -> tuple[Path, FolderLock]:
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
        return claim_any(root)
    return folder, guard


def make_ready(folder: Path, number: int, entries: list[Entry]) -> Path | None:
    """Fix the object's bytes on disk, then give up the open file."""
    path = None
    if entries:
        path = folder / ready_name(number, entries[0].hour.decode())
        part = path.with_suffix(".part")
        compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
        with part.open("wb") as file:
            file.write(compressor.compress(b"".join(entry.line for entry in entries)))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(folder)
    (folder / open_name(number)).unlink(missing_ok=True)
    return path


def entry_of(record: StoredLine, kind: bytes) -> Entry:
    time = record.time.astimezone(UTC)
    # Not strftime, which takes longer than all the rest of this.
    hour = b"%04d%02d%02dT%02d" % (time.year, time.month, time.day, time.hour)
    plain = record.id.isascii() and record.id.replace("-", "").isalnum()
    return Entry(kind, hour, record.id if plain else quote(record.id), record.line)


def next_number(folder: Path) -> int:
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


def open_name(number: int) -> str:
    return f"open-{number:010d}.log"


def ready_name(number: int, hour: str) -> str:
    return f"ready-{number:010d}-{hour}.jsonl.zst"


def framed(entry: Entry) -> bytes:
    body = b" ".join((entry.kind, entry.hour, entry.id.encode(), entry.line))
    return b"%08x " % zlib.crc32(body) + body


def read_entries(path: Path) -> Iterator[Entry]:
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
