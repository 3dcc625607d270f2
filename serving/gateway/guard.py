"""What stops a canary at once, without statistics, a database or a person.

The kill switch: an adapter that cannot be loaded, so many hard failures in a row, so many slow answers
in a row, or one unsafe answer of a rollout's candidate. The dead man's timer: a route that nobody has
tended for too long. Both only ever take traffic away from a candidate.

A champion has a kill switch too, with more patience: one whose own answers fail and fail is replaced by
the teacher, here and at once, and the registry hears of it like of a canary's end.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from infra.calls.record import utc_now
from infra.files import write_atomically
from serving.gateway.routes import Snapshot, TaskRoute

logger = logging.getLogger(__name__)

MAX_KILLS = 1000
LOAD_FAILURES = 3
"""So often in a row must the engine refuse an adapter before it counts as one that cannot be loaded."""
_REFUSALS = "refusals to load it"
CHAMPION = "champion:"
"""Before an adapter's name where a rollout's id stands: there is no rollout to stop."""


@dataclass(frozen=True)
class Kill:
    """One rollout stopped by this gateway."""

    rollout_id: str
    """Or ``CHAMPION`` and the adapter's name."""
    task_id: str
    adapter: str
    reason: str
    time: str
    """ISO 8601, UTC."""
    delivered: bool = False
    """Whether the registry knows."""


class KillSwitch:
    """Counts failures per rollout; a kill is kept in a file, so a restart does not undo it.

    Safe to use from several threads.

    Args:
        path: where the kills are kept.
        burst: consecutive hard failures that stop a candidate.
        slow_burst: consecutive slow answers that stop a candidate.
        champion_burst: consecutive answers of a champion that fail their checks and stop it.
    """

    def __init__(
        self, path: Path, burst: int, *, slow_burst: int = 10, champion_burst: int = 20
    ) -> None:
        self._path = path
        self._burst = burst
        self._slow_burst = slow_burst
        self._champion_burst = champion_burst
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._streaks: dict[tuple[str, str], int] = {}
        """By rollout (or champion) and kind of failure."""
        self._kills: dict[str, Kill] = {}
        try:
            for value in json.loads(path.read_text(encoding="utf-8")):
                kill = Kill(**value)
                self._kills[kill.rollout_id] = kill
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read (%s): starting without it", path, error)

    def killed(self, rollout_id: str | None) -> bool:
        return rollout_id is not None and rollout_id in self._kills

    def champion_killed(self, route: TaskRoute) -> bool:
        # Nearly always there is no kill at all, and this is asked for every call.
        return (
            bool(self._kills)
            and route.champion is not None
            and CHAMPION + route.champion.name in self._kills
        )

    def report(
        self,
        route: TaskRoute,
        hard_failure: bool,
        passed: bool,
        reason: str,
        *,
        slow: bool = False,
        unsafe: str | None = None,
    ) -> Kill | None:
        """Count one answer of the route's candidate; returns the kill when this one caused it.

        Args:
            hard_failure: the candidate failed by its own doing.
            passed: it answered and its answer passed the checks; anything between the two, such as a
                full queue, neither counts nor clears.
            reason: for people; holds nothing of the caller's.
            slow: it took longer than the rollout's terms allow.
            unsafe: what must never be said and was, in words that do not repeat it.
        """
        rollout, candidate = route.rollout_id, route.candidate
        if rollout is None or candidate is None:
            return None
        if unsafe is not None:
            return self._kill(rollout, route.id, candidate.name, f"unsafe output: {unsafe}")
        hard = self._count(rollout, "hard failures", hard_failure, passed, self._burst)
        late = self._count(rollout, "slow answers", slow, passed, self._slow_burst)
        told = f"{hard}, the last one {reason}" if hard else late and f"latency collapse: {late}"
        return self._kill(rollout, route.id, candidate.name, told) if told else None

    def report_champion(
        self, route: TaskRoute, failed: bool, passed: bool, reason: str
    ) -> Kill | None:
        """Count one answer of the route's champion; ``failed``: it answered, and wrongly."""
        if route.champion is None:
            return None
        name = route.champion.name
        found = self._count(CHAMPION + name, "failed answers", failed, passed, self._champion_burst)
        if found is None:
            return None
        why = f"the champion is broken: {found}, the last one {reason}"
        return self._kill(CHAMPION + name, route.id, name, why)

    def cannot_load(self, route: TaskRoute, reason: str) -> Kill | None:
        """The engine (or the check before it) refused the route's candidate once more."""
        rollout, candidate = route.rollout_id, route.candidate
        if rollout is None or candidate is None:
            return None
        found = self._count(rollout, _REFUSALS, True, False, LOAD_FAILURES)
        if found is None:
            return None
        return self._kill(rollout, route.id, candidate.name, f"load failure: {found}: {reason}")

    def loaded(self, names: Collection[str], snapshot: Snapshot) -> None:
        """The engine took these adapters: what it refused before is no row any more."""
        if not self._streaks:
            return
        for task in snapshot.tasks:
            if task.rollout_id and task.candidate is not None and task.candidate.name in names:
                self._count(task.rollout_id, _REFUSALS, False, True, LOAD_FAILURES)

    def _count(self, key: str, what: str, failed: bool, passed: bool, limit: int) -> str | None:
        """One more of a kind, or the end of a row of them; in words once there are too many."""
        if not failed:
            if passed and self._streaks:
                with self._lock:
                    self._streaks.pop((key, what), None)
            return None
        with self._lock:
            streak = self._streaks[key, what] = self._streaks.get((key, what), 0) + 1
        return f"{streak} {what} in a row" if streak >= limit else None

    def _kill(self, key: str, task_id: str, adapter: str, reason: str) -> Kill | None:
        with self._lock:
            if key in self._kills:
                return None
            kill = Kill(key, task_id, adapter, reason[:300], utc_now().isoformat())
            self._kills[key] = kill
            self._keep()
        self._news.set()
        logger.error("kill switch: %s of task %s: %s", kill.adapter, kill.task_id, kill.reason)
        return kill

    def wait(self, timeout_seconds: float) -> None:
        """Until something was killed, or the time is over. For the one thread that delivers."""
        if self._news.wait(timeout_seconds):
            self._news.clear()

    def wake(self) -> None:
        """End the present wait, or the next one."""
        self._news.set()

    def undelivered(self) -> list[Kill]:
        with self._lock:
            return [kill for kill in self._kills.values() if not kill.delivered]

    def delivered(self, rollout_id: str) -> None:
        """The registry has the kill."""
        with self._lock:
            kill = self._kills.get(rollout_id)
            if kill is not None:
                self._kills[rollout_id] = Kill(**{**asdict(kill), "delivered": True})
                self._keep()

    def forget(self, snapshot: Snapshot) -> None:
        """Drop delivered kills of rollouts that no route carries any more."""
        live = {task.rollout_id for task in snapshot.tasks} | {
            CHAMPION + task.champion.name for task in snapshot.tasks if task.champion is not None
        }
        with self._lock:
            gone = [
                name for name, kill in self._kills.items() if kill.delivered and name not in live
            ]
            for name in gone:
                del self._kills[name]
            for place in [place for place in self._streaks if place[0] not in live]:
                del self._streaks[place]
            if gone:
                self._keep()

    def _keep(self) -> None:
        """Called with the lock held. A kill that cannot be written still holds in memory."""
        kills = [asdict(kill) for kill in self._kills.values()][-MAX_KILLS:]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(kills))
        except OSError as error:
            logger.error("kills cannot be kept at %s: %s", self._path, error.strerror)


def tended(route: TaskRoute, now: datetime, dead_man_seconds: float) -> bool:
    """Whether somebody looks after the route's rollout; without one there is nothing to tend.

    A route that was tended in the future says that this clock or the other one was set: nobody can
    tell how long ago it was.
    """
    if route.stage == "none" or route.updated is None:
        return route.stage == "none"
    return abs((now - route.updated).total_seconds()) <= dead_man_seconds
