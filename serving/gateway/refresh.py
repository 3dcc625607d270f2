"""Keeps the snapshot of the routes fresh: a thread reads, everybody else takes what is there.

The thread looks every ``refresh_seconds``, and on PostgreSQL at once when a table announces a change.
It also builds the router, so that the event loop never pays for a new snapshot.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infra.calls.record import utc_now
from infra.database.open import Database
from serving.gateway.routes import Snapshot
from serving.gateway.routing import Router
from serving.gateway.snapshot_file import SnapshotError, SnapshotFile, load_snapshot
from serving.gateway.snapshot_rows import SnapshotReader

if TYPE_CHECKING:
    from infra.database.listening import Listener

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""How old the file's own date may be when nothing but the date has changed."""
REST = 4.0
"""Notices never make the thread work for more than one part in this and one."""
MIN_REST_SECONDS = 0.005


class RouteTable:
    """The current snapshot. ``current`` and ``router`` are safe to read from any thread.

    Args:
        open_database: makes the database handle; called again after a failure, in the thread, so that
            a gateway starts while the database is down.
        changed: called in the thread, with the snapshot, when anything but its date differs.
    """

    def __init__(
        self,
        open_database: Callable[[], Database],
        path: Path,
        refresh_seconds: float,
        changed: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self._open = open_database
        self._file = SnapshotFile(path)
        self._every = refresh_seconds
        self._changed = changed or (lambda _: None)
        self._reader: SnapshotReader | None = None
        self._listener: Listener | None = None
        self._saved_at: float | None = None
        self._unsaved = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failing = False
        self.current = Snapshot()
        try:
            self.current = load_snapshot(path) or Snapshot()
        except SnapshotError as error:
            logger.warning("%s", error)
        self.router = Router(self.current)
        """Over ``current``; calls to it are for the event loop."""

    @property
    def known(self) -> bool:
        """Whether any snapshot was ever had, from the database or from disk."""
        return self.current.taken is not None

    @property
    def listening(self) -> bool:
        """Whether changes are heard of as they happen; else they are found by looking."""
        return self._listener is not None and self._listener.listening

    def start(self) -> None:
        """Read once at once in the thread, then whenever there is reason to."""
        self._thread = threading.Thread(target=self._loop, name="routes", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        self._stop.set()
        listener = self._listener
        if listener is not None:
            listener.wake()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def refresh(self) -> bool:
        """Read now. False when the database could not be read; the last good snapshot stays."""
        now = utc_now()
        try:
            if self._reader is None:
                self._reader = SnapshotReader(self._open())
            read = self._reader.read(now)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises: keep the last good
            if not self.failing:
                logger.warning(
                    "routes cannot be read (%s): serving those of %s",
                    type(error).__name__,
                    self.current.taken or "nobody: the teacher answers everything",
                )
            self.failing = True
            if self._reader is not None:
                self._reader.close()
            return False
        if self.failing:
            logger.info("routes can be read again")
        self.failing = False
        changed = read is not None and not read.says(self.current)
        if changed:
            assert read is not None
            # The router first: whoever sees the new routes must find calls by them too.
            self.router = Router(read, self.router)
            self.current = read
            self._changed(read)
        else:
            self.current = self.current.seen_again(now)
        self._save(changed)
        return True

    def _save(self, changed: bool) -> None:
        # Not by the wall clock: it may be set back.
        now = time.monotonic()
        self._unsaved = self._unsaved or changed
        if not self._unsaved and self._saved_at and now - self._saved_at < SAVE_SECONDS:
            return
        try:
            self._file.save(self.current)
        except OSError as error:
            logger.warning(
                "the routes cannot be kept at %s (%s): a restart needs the database",
                self._file.path,
                error.strerror,
            )
        else:
            self._saved_at, self._unsaved = now, False

    def _loop(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self.refresh()
            except Exception:
                # The thread must live on: without it this gateway never hears of a rollback.
                logger.exception("the routes could not be refreshed")
            self._rest(time.monotonic() - started)
        if self._reader is not None:
            self._reader.close()
        if self._listener is not None:
            self._listener.close()

    def _rest(self, worked_seconds: float) -> None:
        """Until it is time to look again."""
        if self._listener is None and self._reader is not None and not self._reader.is_sqlite:
            from infra.database.listening import Listener

            self._listener = Listener(self._reader.url)
        if self._listener is None:
            self._stop.wait(self._every)
            return
        # A burst of changes is read as a whole.
        pause = min(max(MIN_REST_SECONDS, REST * worked_seconds), self._every)
        if not self._stop.wait(pause) and self._listener.wait(self._every - pause):
            logger.debug("a change was announced")
