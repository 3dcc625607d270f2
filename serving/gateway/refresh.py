"""Keeps the snapshot of the routes fresh: a thread reads, everybody else takes what is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.calls.record import utc_now
from infra.database.open import Database
from serving.gateway.routes import (
    Snapshot,
    SnapshotError,
    load_snapshot,
    read_snapshot,
    read_token,
    save_snapshot,
)

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""How old the file's own date may be when nothing but the date has changed."""


class RouteTable:
    """The current snapshot. ``current`` is safe to read from any thread.

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
        self._path = path
        self._every = refresh_seconds
        self._changed = changed or (lambda _: None)
        self._database: Database | None = None
        self._token: tuple[Any, ...] | None = None
        self._saved_at = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failing = False
        self.current = Snapshot()
        try:
            self.current = load_snapshot(path) or Snapshot()
        except SnapshotError as error:
            logger.warning("%s", error)

    @property
    def known(self) -> bool:
        """Whether any snapshot was ever had, from the database or from disk."""
        return self.current.taken is not None

    def start(self) -> None:
        """Read once at once in the thread, then every ``refresh_seconds``."""
        self._thread = threading.Thread(target=self._loop, name="routes", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def refresh(self) -> bool:
        """Read now. False when the database could not be read; the last good snapshot stays."""
        now = utc_now()
        try:
            if self._database is None:
                self._database = self._open()
            token = read_token(self._database)
            if token == self._token:
                snapshot = self.current.seen_again(now)
            else:
                snapshot = read_snapshot(self._database, now)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises: keep the last good
            if not self.failing:
                logger.warning(
                    "routes cannot be read (%s): serving those of %s",
                    type(error).__name__,
                    self.current.taken or "nobody: the teacher answers everything",
                )
            self.failing, self._token = True, None
            return False
        if self.failing:
            logger.info("routes can be read again")
        self.failing = False
        changed = snapshot.seen_again(now) != self.current.seen_again(now)
        self.current, self._token = snapshot, token
        if changed:
            self._changed(snapshot)
        self._save(snapshot, changed)
        return True

    def _save(self, snapshot: Snapshot, changed: bool) -> None:
        assert snapshot.taken is not None
        stamp = snapshot.taken.timestamp()
        if not changed and stamp - self._saved_at < SAVE_SECONDS:
            return
        try:
            save_snapshot(snapshot, self._path)
            self._saved_at = stamp
        except OSError as error:
            logger.warning(
                "the routes cannot be kept at %s (%s): a restart needs the database",
                self._path,
                error.strerror,
            )

    def _loop(self) -> None:
        while True:
            self.refresh()
            if self._stop.wait(self._every):
                return
