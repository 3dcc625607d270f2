"""Garbage collected by a thread that does nothing else.

A statement that SQLite refuses leaves its cursor in a cycle with the error. Who collects that waits
for the cursor's connection, which may be waiting for the database's write lock, held by a transaction
that only the event loop can end. Python collects in whatever thread made the last object, mostly the
loop's: then nothing goes on until the wait is over (decision 42).
"""

from __future__ import annotations

import gc
import threading
import time

LOOK_SECONDS = 0.1
"""So many times a second at most is garbage collected; a busy server makes some megabytes in one."""


def collect_garbage_aside() -> None:
    """From now on no other thread of this process collects garbage."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def _collect() -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        counts = zip(gc.get_count(), gc.get_threshold(), strict=True)
        due = [generation for generation, (made, most) in enumerate(counts) if made > most]
        if due:
            gc.collect(due[-1])
