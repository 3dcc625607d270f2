"""Hold a lease while a piece of work lasts, and let it go with the work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from infra.calls.record import new_id
from infra.database.leases import acquire, release, renew
from infra.database.open import Database

logger = logging.getLogger(__name__)

TTL_SECONDS = 20.0
POLL_SECONDS = 1.0
NIGHT = "night"
"""Whoever freezes data sets or trains holds it: one at a time, and nobody while a subject is forgotten."""
KILLED_SECONDS = TTL_SECONDS + 10
"""After so long the lease of a run that was killed has run out; a night takes longer."""


class Busy(Exception):
    """Somebody else does this work now."""


@contextmanager
def hold(database: Database, name: str, holder: str, *, wait_seconds: float = 0.0) -> Iterator[int]:
    """The lease ``name`` for the length of the block; yields its fence.

    A thread renews it, so that work of any length keeps it and a killed process frees it within
    ``TTL_SECONDS``.

    Args:
        wait_seconds: how long to wait for another holder; 0 asks once.

    Raises:
        Busy: another holder still has it.
    """
    holder = f"{holder}:{new_id()[-6:]}"[:100]
    deadline = time.monotonic() + wait_seconds
    while (fence := acquire(database, name, holder, TTL_SECONDS)) is None:
        if time.monotonic() >= deadline:
            raise Busy(f"{name} is being done elsewhere")
        time.sleep(POLL_SECONDS)
    done = threading.Event()

    def keep() -> None:
        while not done.wait(TTL_SECONDS / 4):
            try:
                held = renew(database, name, holder, fence, TTL_SECONDS)
            except Exception:
                # A database that is away for a moment: the next try may still be in time.
                logger.exception("the lease %s could not be renewed", name)
                continue
            if not held:
                # What the holder writes is guarded by content keys and versions of its own.
                logger.error("the lease %s ran out while its work went on", name)
                return

    keeper = threading.Thread(target=keep, name=f"lease {name}", daemon=True)
    keeper.start()
    try:
        yield fence
    finally:
        done.set()
        keeper.join()
        release(database, name, holder, fence)
