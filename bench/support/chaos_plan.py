"""What is done to the deployment, and when: a plan is data, and may be read before it is run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Action = Literal["kill", "pause", "mode", "fill", "loris", "clock"]
GATEWAYS = ("first", "second")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong for a while.

    ``kill``: kill -9 at its beginning, a new start at its end. ``pause``: SIGSTOP and SIGCONT.
    ``mode``: the teacher behaves as ``argument`` says. ``fill``: the disk under the spool is full.
    ``loris``: connections whose requests never end. ``clock``: the clock is set by ``argument``
    seconds, and back.
    """

    name: str
    action: Action
    targets: tuple[str, ...]
    seconds: float
    argument: str = ""

    @property
    def hides_routes(self) -> bool:
        """Whether gateways cannot learn of route changes while it lasts."""
        return "database" in self.targets


@dataclass(frozen=True)
class Scheduled:
    """A fault and the calm before it."""

    calm_seconds: float
    fault: Fault


FAULTS = (
    Fault("gateway first killed", "kill", ("first",), 3),
    Fault("engine killed", "kill", ("engine",), 3),
    Fault("teacher answers 500", "mode", ("teacher",), 4, "error"),
    Fault("database killed", "kill", ("database",), 4),
    Fault("disk full", "fill", ("second",), 4),
    Fault("teacher killed", "kill", ("teacher",), 3),
    Fault("clock an hour forward", "clock", ("first",), 5, "3600"),
    Fault("object store cut off", "kill", ("store",), 4),
    Fault("teacher cuts streams", "mode", ("teacher",), 4, "break"),
    Fault("slow loris", "loris", GATEWAYS, 5),
    Fault("database stopped", "pause", ("database",), 6),
    Fault("gateway second killed", "kill", ("second",), 3),
    Fault("teacher answers 429", "mode", ("teacher",), 4, "limit"),
    Fault("object store hangs", "pause", ("store",), 4),
    Fault("clock an hour back", "clock", ("first",), 5, "-3600"),
    Fault("teacher hangs", "mode", ("teacher",), 5, "hang"),
    Fault("all but the gateways killed", "kill", ("engine", "teacher", "database", "store"), 4),
)
QUICK_SECONDS = 1.0
QUICK_CALM_SECONDS = 0.6
CALM_SECONDS = 4.0
SETTLE_SECONDS = 3.0
"""Longest recovery that is reckoned with between two faults of a full plan."""


def quick_plan() -> list[Scheduled]:
    """Every fault once, and short."""
    return [
        Scheduled(QUICK_CALM_SECONDS, replace(fault, seconds=min(fault.seconds, QUICK_SECONDS)))
        for fault in FAULTS
    ]


def plan(minutes: float) -> list[Scheduled]:
    """The faults in turn, again and again, for about so many minutes; every one at least once."""
    made: list[Scheduled] = []
    left = minutes * 60
    while left > 0 or len(made) < len(FAULTS):
        fault = FAULTS[len(made) % len(FAULTS)]
        made.append(Scheduled(CALM_SECONDS, fault))
        left -= CALM_SECONDS + fault.seconds + SETTLE_SECONDS
    return made


def possible(
    wanted: Sequence[Scheduled], *, without: dict[str, str], actions: Collection[str] = ()
) -> tuple[list[Scheduled], dict[str, str]]:
    """The part of a plan that can be done here, and for each fault that cannot: why.

    Args:
        without: target or action to the reason why it is not to be had.
        actions: those of ``without`` that are actions.
    """
    kept, skipped = [], {}
    for item in wanted:
        fault = item.fault
        wants = fault.action if fault.action in actions else ""
        reasons = [without[name] for name in (wants, *fault.targets) if name in without]
        if not reasons:
            kept.append(item)
        elif len(fault.targets) > 1 and not wants:
            rest = tuple(name for name in fault.targets if name not in without)
            kept.append(replace(item, fault=replace(fault, targets=rest)))
        else:
            skipped[fault.name] = reasons[0]
    return kept, skipped
