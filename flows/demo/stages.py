"""Following what takes long: a clock per stage, progress lines, a flow run watched to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.demo.player import Tally
from flows.orchestrator import FlowRun, Orchestrator, OrchestratorDown

POLL_SECONDS = 1.0
SAY_EVERY_SECONDS = 5.0
NOISE = ("Finished in state", "Created task run", "Beginning flow run", "View at", "Heartbeat")
Say = Callable[[str], None]


class DemoFailed(Exception):
    """The demo cannot go on; the message says which stage and where to look."""


class Stages:
    """Names, announces and times the stages."""

    def __init__(self, say: Say) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say
        self._began = time.monotonic()

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        self.say(f"== {name}: {what}")
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - began
            self.say(f"   {name} took {self.seconds[name]:.0f} s")

    def say(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._say(f"[{minutes:02d}:{seconds:02d}] {line}")


class PlayProgress:
    """Says every few seconds how far the agents are."""

    def __init__(self, say: Say, what: str, total: int | None) -> None:
        self._say, self._what, self._total = say, what, total
        self._began = self._last = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._last < SAY_EVERY_SECONDS:
            return
        self._last = now
        rate = tally.calls / (now - self._began)
        line = f"   {self._what}: {tally.calls}"
        if self._total:
            line += (
                f" of {self._total} calls, about {(self._total - tally.calls) / rate:.0f} s left"
            )
        else:
            line += f" calls, {tally.small_share:.0%} answered by the small model"
        self._say(line)


def follow(
    orchestrator: Orchestrator,
    run: FlowRun,
    say: Say,
    *,
    limit_seconds: float,
    alive: Callable[[], None],
) -> FlowRun:
    """Show a run's log lines until it ends.

    Args:
        limit_seconds: give up then.
        alive: called between two looks, to notice a process that died.

    Raises:
        DemoFailed: it did not complete, or took longer than the limit.
    """
    deadline = time.monotonic() + limit_seconds
    shown = 0
    while True:
        alive()
        try:
            lines = orchestrator.logs(run.id, shown)
            now = orchestrator.run(run.id)
        except OrchestratorDown:
            time.sleep(POLL_SECONDS)
            continue
        shown += len(lines)
        for line in lines:
            if not line.startswith(NOISE):
                say(f"   {line.splitlines()[0][:200]}")
        if now.ended and not lines:
            if now.state != "COMPLETED":
                raise DemoFailed(f"the run {now.name!r} ended {now.state}: {now.message}")
            return now
        if time.monotonic() > deadline:
            raise DemoFailed(f"the run {now.name!r} is not done after {limit_seconds:.0f} s")
        time.sleep(POLL_SECONDS)
