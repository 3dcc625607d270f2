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

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from infra.calls.codec import StoredLine
from serving.gateway.pressing import Presser, overrides
from serving.gateway.spool_files import (
    FINAL,
    PROVISIONAL,
    Entry,
    FolderLock,
    OpenFile,
    claim_any,
    entry_of,
    framed,
    make_ready,
    open_name,
    read_entries,
    ready_files,
)

DEFAULT_MAX_BYTES = 4 << 30


class SpoolError(Exception):
    """The record could not be written: disk full or gone. The message says which."""


class Spool:
    """One gateway's part of the spool. All methods are safe from several threads.

    ``append`` never waits for a seal or for the disk's own cache: it holds the lock for one ``write``.

    Args:
        root: the spool folder, shared by all gateways of this machine.
        max_bytes: how much may wait here, open and ready; beyond it ``append`` refuses.

    Raises:
        OSError: the folder cannot be made or locked.
    """

    def __init__(self, root: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._sealing = threading.Lock()
        self.folder, self._guard = claim_any(root)
        self._presser = Presser(self.folder, self._guard)
        self.root = root
        self.writer = self.folder.name
        self._max_bytes = max_bytes
        self._ready_bytes = 0
        self._open: OpenFile | None = None
        # Provisional lines whose final ones may still come.
        self._pending: dict[str, bytes] = {}
        # A file that was given up for sealing and could not be made ready, with what was carried on.
        self._stuck: tuple[int, frozenset[str]] | None = None
        _recover(self.folder)
        self.measure()

    @property
    def size_bytes(self) -> int:
        """Bytes in the open file."""
        return self._open.size if self._open is not None else 0

    @property
    def count(self) -> int:
        """Lines in the open file."""
        return self._open.count if self._open is not None else 0

    def waiting(self) -> int:
        """Objects made and not yet shipped."""
        return len(ready_files(self.folder))

    def measure(self) -> None:
        """Look how much is ready and not yet shipped; call it after shipping."""
        sizes = 0
        for path in ready_files(self.folder):
            with contextlib.suppress(FileNotFoundError):
                sizes += path.stat().st_size
        self._ready_bytes = sizes

    def append(self, record: StoredLine, *, provisional: bool = False) -> None:
        """Write one record. When this returns, a crash of this process does not lose it.

        Raises SpoolError when the disk will not take it; the spool stays usable.
        """
        line = framed(entry_of(record, PROVISIONAL if provisional else FINAL))
        with self._lock:
            held = self._ready_bytes + self.size_bytes
            if held + len(line) > self._max_bytes:
                raise SpoolError(
                    f"the spool at {self.folder} holds {held} bytes and may hold "
                    f"{self._max_bytes}: is the object store away, or is "
                    "gateway.spool_max_bytes too small?"
                )
            try:
                if self._open is None:
                    self._open = OpenFile(self.folder)
                self._open.write(line)
            except OSError as error:
                raise SpoolError(f"the spool at {self.folder} takes no record: {error}") from error
            if provisional:
                self._pending[record.id] = line
            else:
                self._pending.pop(record.id, None)

    def sync(self) -> None:
        """Push what was appended to the disk itself (a power cut, not just a crash)."""
        with self._lock:
            file = os.dup(self._open.file) if self._open is not None else None
        if file is not None:
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def seal(self, *, last: bool = False) -> Path | None:
        """Turn the open file into an object ready to ship; None when there is nothing in it.

        Appends go on in the next file meanwhile.

        Args:
            last: nothing more will come: provisional records are final as they are.

        Raises SpoolError when the disk will not take it; nothing is lost, try again later.
        """
        with self._sealing:
            try:
                self._unstick()
                if self.count == 0:
                    return None
                return self._seal(last)
            except OSError as error:
                raise SpoolError(f"the spool at {self.folder} is stuck: {error}") from error

    def alone(self) -> None:
        """From now on without a helping process: the gateway ends, and waits for no other."""
        self._presser.alone()

    def close(self) -> None:
        self.alone()
        with self._sealing, self._lock:
            if self._open is not None:
                self._open.close()
                if self._open.count == 0:
                    self._open.discard()
                self._open = None
            self._guard.release()

    def _seal(self, last: bool) -> Path | None:
        fresh = OpenFile(self.folder)
        with self._lock:
            old, carried = self._open, {} if last else dict(self._pending)
            assert old is not None
            try:
                for line in carried.values():
                    fresh.write(line)
            except OSError:
                fresh.close()
                fresh.discard()
                raise
            self._open = fresh
            if last:
                self._pending.clear()
        self._stuck = old.number, frozenset(carried)
        # The carried records are safe in the next file before the old one is given up.
        self.sync()
        os.fsync(old.file)
        old.close()
        return self._unstick()

    def _unstick(self) -> Path | None:
        """Make the file that was given up into an object."""
        path = None
        if self._stuck is not None:
            number, carried = self._stuck
            if (self.folder / open_name(number)).exists():
                path = self._presser.press(number, carried)
            self._stuck = None
            self.measure()
        return path


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
        left.append((number, list(read_entries(path))))
    # A record carried over but not yet given up is in two files: the later one has the last word.
    latest: dict[str, tuple[int, bytes]] = {}
    for number, entries in left:
        for entry in entries:
            if overrides(entry.kind, latest.get(entry.id, (0, PROVISIONAL))[1]):
                latest[entry.id] = (number, entry.kind)
    for number, entries in left:
        mine = {entry.id: entry for entry in entries if latest[entry.id] == (number, entry.kind)}
        make_ready(folder, number, list(mine.values()))
