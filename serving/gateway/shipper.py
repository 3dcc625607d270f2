"""Ships what the spool has made ready to object storage, and clears it away once it is there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from infra.objects.store import ObjectExists, ObjectStore, ObjectStoreError
from serving.gateway.spool import Spool, SpoolError, adopt_orphans
from serving.gateway.spool_files import object_key, ready_files, renumber

logger = logging.getLogger(__name__)

ORPHAN_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 30.0


def ship_file(store: ObjectStore, path: Path) -> str:
    """Create the object of a ready file, then delete the file; returns the key.

    Safe to repeat after a crash at any point: the same key with the same bytes counts as done. Raises
    ObjectStoreError when the store is out of reach; the file stays.
    """
    data = path.read_bytes()
    key = object_key(path)
    try:
        store.create(key, data)
    except ObjectExists:
        if store.get(key) != data:
            # Never overwrite and never drop: this writer's folder was copied or set back.
            moved = renumber(path)
            logger.error("%s is taken by other content: shipping under another number", key)
            return ship_file(store, moved)
    path.unlink(missing_ok=True)
    return key


class Shipper:
    """A thread that seals the open file every ``ship_seconds`` or ``ship_bytes``, and ships.

    Args:
        open_store: makes the store; called in the thread and again after a failure.
        shipped: told after every round (objects shipped, whether the store could be reached).
    """

    def __init__(
        self,
        spool: Spool,
        open_store: Callable[[], ObjectStore],
        *,
        ship_seconds: float,
        ship_bytes: int,
        shipped: Callable[[int, bool], None] | None = None,
    ) -> None:
        self._spool = spool
        self._open_store = open_store
        self._store: ObjectStore | None = None
        self._every = ship_seconds
        self._bytes = ship_bytes
        self._shipped = shipped or (lambda *_: None)
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._orphans_at = -ORPHAN_SECONDS
        self._reached = True
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="shipper", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Called after an append: ship early when the open file has grown large."""
        if self._spool.size_bytes >= self._bytes:
            self._wake.set()

    def stop(self, timeout_seconds: float) -> bool:
        """Seal everything, ship what can be shipped in time. What cannot waits for the next start."""
        self._stop.set()
        self._wake.set()
        self._spool.alone()
        if self._thread is None:
            return self.run_once(last=True)
        # By the thread, which is left alone when a store hangs: the process ends without it.
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive() and self._reached

    def run_once(self, *, last: bool = False) -> bool:
        """One round. False when something is left because disk or store would not."""
        count, reached = 0, True
        try:
            # While the store is away the open file grows, rather than thousands of small objects.
            if last or self._reached or self._spool.size_bytes >= self._bytes:
                self._spool.seal(last=last)
            if self._store is None:
                self._store = self._open_store()
            for path in ready_files(self._spool.folder):
                ship_file(self._store, path)
                count += 1
            if time.monotonic() - self._orphans_at >= ORPHAN_SECONDS:
                count += self._ship_orphans(self._store)
                self._orphans_at = time.monotonic()
        except (ObjectStoreError, SpoolError, OSError) as error:
            logger.warning("logs wait in the spool: %s", error)
            reached = False
        except Exception:
            # Whatever a store's driver raises: the files are still there.
            logger.exception("logs wait in the spool")
            self._store, reached = None, False
        if count:
            self._spool.measure()
        self._reached = reached
        self._shipped(count, reached)
        return reached

    def _ship_orphans(self, store: ObjectStore) -> int:
        count = 0
        for folder, guard in adopt_orphans(self._spool.root):
            try:
                for path in ready_files(folder):
                    ship_file(store, path)
                    count += 1
            finally:
                guard.release()
        return count

    def _loop(self) -> None:
        wait = self._every
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._stop.is_set():
                break
            # Backing off from a store that is down; its return is noticed within half a minute.
            wait = self._every if self.run_once() else min(max(wait * 2, 0.5), MAX_BACKOFF_SECONDS)
        self.run_once(last=True)
