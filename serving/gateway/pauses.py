"""Keeps the pauses of Python's cyclic garbage collector too short for a caller to notice.

What a call leaves behind is memory on purpose: a session's placeholders, known texts. The collector takes
it for a suspect and looks through it again and again, 2 microseconds an object: 50 ms for what 20,000
objects had grown to at half load, and a second when their elders' turn came. So it looks at what is
young, little of it at a time, and what survived once is set aside (``gc.freeze``). Set aside, it is
freed as ever when nothing refers to it; only a cycle that outlived a look is not. For those a whole
collection comes at long intervals, at a moment without calls where there is one.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

YOUNG = 2500
"""Objects beyond those that were freed again, from look to look: 1 to 5 milliseconds each time."""
COLLECT_SECONDS = 1800.0
PATIENCE_SECONDS = 1800.0
QUIET_SECONDS = 0.05
"""How often it is looked whether no call is under way."""


def keep_short() -> None:
    """From now on, in this process."""
    gc.freeze()
    gc.set_threshold(YOUNG, 1, 1)  # nothing grows older: the elders are always none
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)


def collect_all() -> int:
    """Look through everything; how many objects only referred to each other."""
    gc.unfreeze()
    return gc.collect()  # whatever survives is set aside again


async def collect_now_and_then(calls: Callable[[], int]) -> None:
    """Until it is cancelled: a whole collection at times, best when no calls are under way."""
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        waited = 0.0
        while calls() and waited < PATIENCE_SECONDS:
            await asyncio.sleep(QUIET_SECONDS)
            waited += QUIET_SECONDS
        collect_all()


def _set_aside(phase: str, _: object) -> None:
    if phase == "stop":
        gc.freeze()
