"""Which adapters the engine should hold when more are routed than it has room for. Pure.

Candidates of a rollout always stay. Of the rest those called last stay; one that was called and is
not there takes the place of the one not called for the longest time. A place changes hands at most
once in ``residence_seconds``, so that more hot adapters than places cannot end in nothing but loading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice


def residents(
    routed: Sequence[str],
    *,
    pinned: Collection[str],
    since: Mapping[str, float],
    used: Mapping[str, float],
    waiting: Mapping[str, float],
    most: int,
    now: float,
    residence_seconds: float,
) -> tuple[str, ...]:
    """The adapters to hold, at most ``most``, in no particular order.

    Args:
        routed: every adapter that a route names, champions first.
        pinned: candidates of open rollouts; first come, first held should they be too many.
        since: the adapters that the engine has, and since when.
        used: when an adapter was last called.
        waiting: adapters that are not there and were called lately, and when.
        most: places.
        now: as in the times above, seconds of any clock that only goes forward.
        residence_seconds: how long an adapter keeps its place at least, unless a candidate needs it.
    """
    goal = [name for name in routed if name in pinned][:most]
    room = most - len(goal)

    def heat(name: str) -> float:
        return max(used.get(name, float("-inf")), since[name])

    there = [name for name in routed if name in since and name not in pinned]
    # Sorting is stable: among equals the one that is routed first stays.
    staying = sorted(there, key=heat, reverse=True)[:room]
    callers = sorted(
        (name for name in routed if name in waiting and name not in since and name not in pinned),
        key=lambda name: waiting[name],
        reverse=True,
    )
    free = room - len(staying)
    staying, callers = staying + callers[:free], callers[free:]
    for caller in callers:
        victim = min((name for name in staying if name in since), key=heat, default=None)
        if victim is None or now - since[victim] < residence_seconds:
            break
        if heat(victim) >= waiting[caller]:
            break
        staying[staying.index(victim)] = caller
    # Room that nobody asked for is filled ahead of the first call.
    taken = {*goal, *staying}
    idle = (name for name in routed if name not in taken and name not in since)
    ahead = islice((name for name in idle if name not in pinned), room - len(staying))
    return (*goal, *staying, *ahead)
