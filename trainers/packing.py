"""How runs are laid over the workers of a night: longest first. Pure.

Longest-processing-time list scheduling ends at most 4/3 - 1/(3 m) times later than the best layout of
m workers could (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def lay_out(seconds: Sequence[float], workers: int) -> list[float]:
    """When each run starts, seconds from now, if whichever worker is free takes the longest left."""
    free = [0.0] * workers
    starts = [0.0] * len(seconds)
    for index in launch_order(seconds):
        starts[index] = free[0]
        heapq.heapreplace(free, free[0] + seconds[index])
    return starts


def launch_order(seconds: Sequence[float]) -> list[int]:
    """Indices, the longest run first; equal ones in the order given."""
    return sorted(range(len(seconds)), key=lambda index: -seconds[index])


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last run ends, seconds from now."""
    starts = lay_out(seconds, workers)
    return max((start + length for start, length in zip(starts, seconds, strict=True)), default=0.0)


def lower_bound(seconds: Sequence[float], workers: int) -> float:
    """No layout ends before this: the mean load, or the longest run, or the m-th and (m+1)-th longest
    one after the other."""
    if not seconds:
        return 0.0
    ordered = sorted(seconds, reverse=True)
    pair = ordered[workers - 1] + ordered[workers] if len(ordered) > workers else 0.0
    return max(sum(seconds) / workers, ordered[0], pair)
