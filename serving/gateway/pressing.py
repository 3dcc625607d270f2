"""Turns a full spool file into a compressed object: a long one in a process of its own.

Compression is work of the processor that nobody waits for, and a thread of the gateway that does it
competes with the event loop as an equal. So a long file is pressed by a child process of low priority,
which the scheduler sets aside the moment a call comes; a short one in the thread, which costs less
than the child.

``python -m serving.gateway.pressing`` is the child: a request a line, an answer a line. It holds the
lock of its gateway's folder too, and ends with the gateway: nobody else finds the folder free while it
still writes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote

import orjson

from infra.parent_death import end_with_parent
from serving.gateway.spool_files import (
    FINAL,
    PROVISIONAL,
    Entry,
    FolderLock,
    make_ready,
    open_name,
    read_entries,
)

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Lines that are read in a thread without a pause for the event loop: a fraction of a millisecond."""
PAUSE_SECONDS = 0.001
SHORT_BYTES = 256 << 10
"""Up to this size a file is pressed in the thread: a few milliseconds."""
NICE = 10
"""Of the child: a tenth of the share of a gateway that keeps a core busy, which is enough."""
CHILD_SECONDS = 120.0
MAX_FAILED = 3
"""After so many children in a row that did not answer there are no more of them."""


def press(folder: Path, number: int, carried: Set[str], *, pauses: bool) -> Path | None:
    """Make the ready file of an open file that was given up, and delete the open file.

    Safe to repeat after a crash at any point. None when no record is left to ship.

    Args:
        carried: ids of provisional records that went on to the next file.
        pauses: let the event loop in between, when this is a thread beside it.
    """
    found = read_entries(folder / open_name(number))
    return make_ready(folder, number, _settled(_now_and_then(found) if pauses else found, carried))


class Unanswered(Exception):
    """The child did not say whether it is done."""


class Presser:
    """Presses one folder's files, one at a time; starts its child when the first long file comes.

    Args:
        guard: the folder's lock, held by the child as well.
    """

    def __init__(self, folder: Path, guard: FolderLock) -> None:
        self._folder = folder
        self._guard = guard
        self._short_bytes = SHORT_BYTES
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._alone = False
        self._failed = 0

    def press(self, number: int, carried: Set[str]) -> Path | None:
        """``press``, wherever it disturbs least. Raises OSError when the disk will not take it."""
        path = self._folder / open_name(number)
        if path.stat().st_size > self._short_bytes and not self._alone:
            try:
                return self._ask(number, carried)
            except Unanswered as error:
                self._end()  # nobody else must be at the file
                self._failed += 1
                if not self._alone:
                    logger.warning("a log file is pressed in the gateway: %s", error)
                self._alone = self._alone or self._failed >= MAX_FAILED
        return press(self._folder, number, carried, pauses=True) if path.exists() else None

    def alone(self) -> None:
        """From now on without the child, which may have to wait long for its turn."""
        self._alone = True
        self._end()

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        child = self._child
        return child.pid if child is not None else None

    def _ask(self, number: int, carried: Set[str]) -> Path | None:
        """Raises Unanswered when the child does not do it, OSError when the disk will not take it."""
        request = orjson.dumps([str(self._folder), number, sorted(carried)]) + b"\n"
        try:
            answer = self._answer(request)
        except (OSError, ValueError) as error:
            raise Unanswered(str(error)) from error
        self._failed = 0
        if answer["error"] is not None:
            raise OSError(answer["error"])
        return Path(answer["ready"]) if answer["ready"] else None

    def _answer(self, request: bytes) -> dict[str, Any]:
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(request)
        child.stdin.flush()
        # Not select, which takes no descriptor beyond 1023: each open call has one.
        waiting = select.poll()
        waiting.register(child.stdout, select.POLLIN)
        if not waiting.poll(CHILD_SECONDS * 1000):
            raise OSError("its process does not answer")
        answer: dict[str, Any] = orjson.loads(child.stdout.readline())
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._alone:
                raise OSError("the gateway ends")
            if self._child is None:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "serving.gateway.pressing"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[self._guard.file],
                )
            return self._child

    def _end(self) -> None:
        with self._lock:
            child, self._child = self._child, None
            if child is None:
                return
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def main() -> int:
    """The child: until its gateway closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway ends it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICE)
    end_with_parent(signal.SIGKILL)
    for line in sys.stdin.buffer:
        folder, number, carried = orjson.loads(line)
        ready, problem = None, None
        try:
            ready = press(Path(folder), number, frozenset(carried), pauses=False)
        except OSError as error:
            problem = str(error)
        answer = {"ready": str(ready) if ready else None, "error": problem}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _now_and_then(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same, with pauses: reading holds the interpreter, and the event loop is not to wait for
    all of it."""
    for number, entry in enumerate(entries, 1):
        if number % AT_ONCE == 0:
            time.sleep(PAUSE_SECONDS)
        yield entry


def _settled(entries: Iterator[Entry], carried: Set[str]) -> list[Entry]:
    """The entries to ship, in the order of their first line: each record once, its last word."""
    last: dict[str, Entry] = {}
    for entry in entries:
        if entry.id not in last or overrides(entry.kind, last[entry.id].kind):
            last[entry.id] = entry
    return [e for e in last.values() if e.kind == FINAL or unquote(e.id) not in carried]


def overrides(kind: bytes, before: bytes) -> bool:
    return kind == FINAL or before == PROVISIONAL


if __name__ == "__main__":
    sys.exit(main())
