"""What stops a canary at once, without statistics, a database or a person.

The kill switch: so many hard failures in a row of one rollout's candidate. The dead man's timer: a
route that nobody has tended for too long. Both only ever take traffic away from a candidate.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from infra.calls.record import utc_now
from infra.files import write_atomically
from serving.gateway.routes import Snapshot, TaskRoute

logger = logging.getLogger(__name__)

MAX_KILLS = 1000


@dataclass(frozen=True)
class Kill:
    """One rollout stopped by this gateway."""

    rollout_id: str
    task_id: str
    adapter: str
    reason: str
    time: str
    """ISO 8601, UTC."""
    delivered: bool = False
    """Whether the registry knows."""


class KillSwitch:
    """Counts hard failures per rollout; a kill is kept in a file, so a restart does not undo it.

    Safe to use from several threads.

    Args:
        path: where the kills are kept.
        burst: consecutive hard failures that stop a candidate.
    """

    def __init__(self, path: Path, burst: int) -> None:
        self._path = path
        self._burst = burst
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._streaks: dict[str, int] = {}
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

    def report(
        self, route: TaskRoute, hard_failure: bool, passed: bool, reason: str
    ) -> Kill | None:
        """Count one answer of the route's candidate; returns the kill when this one caused it.

        Args:
            hard_failure: the candidate failed by its own doing.
            passed: it answered and its answer passed the checks; anything between the two, such as a
                full queue, neither counts nor clears.
            reason: for people; holds nothing of the caller's.
        """
        rollout, candidate = route.rollout_id, route.candidate
        if rollout is None or candidate is None:
            return None
        with self._lock:
            if passed:
                self._streaks.pop(rollout, None)
            if not hard_failure or rollout in self._kills:
                return None
            streak = self._streaks.get(rollout, 0) + 1
            self._streaks[rollout] = streak
            if streak < self._burst:
                return None
            kill = Kill(
                rollout_id=rollout,
                task_id=route.id,
                adapter=candidate.name,
                reason=f"{streak} hard failures in a row, the last one {reason}"[:300],
                time=utc_now().isoformat(),
            )
            self._kills[rollout] = kill
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
        live = {task.rollout_id for task in snapshot.tasks}
        with self._lock:
            gone = [
                name for name, kill in self._kills.items() if kill.delivered and name not in live
            ]
            for name in gone:
                del self._kills[name]
            for name in [name for name in self._streaks if name not in live]:
                del self._streaks[name]
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
