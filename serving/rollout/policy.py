"""What was agreed before a rollout began: frozen when it opens and stored in its row.

Margin and error rates must not move while evidence comes in, or the sequential test means nothing;
so a later change of the settings touches later rollouts only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from infra.settings.operating import Rollout as RolloutSettings

WhenOpen = Literal["supersede", "queue"]


@dataclass(frozen=True)
class RolloutPolicy:
    """The terms of one rollout. Shares and rates are fractions of one; durations are seconds.

    Raises ValueError when the terms contradict each other.
    """

    shadow_sessions: int = 20
    """Paired answers before anyone is exposed; 0 skips the shadow state."""
    steps: tuple[float, ...] = (0.1, 0.25, 0.5)
    """Shares of sessions in the canary arm, strictly rising."""
    step_sessions: int = 20
    """Canary sessions before the next step, and the fewest before a promotion."""
    margin: float = 0.05
    """Worse by this or more must not be promoted."""
    rollback_margin: float | None = 0.01
    """Worse than an adapter by more than this is rolled back; None: ``margin``."""
    teacher_rollback_margin: float | None = 0.05
    """Likewise beside the teacher, to whom a small model that passed the gate may lose as much."""
    alpha_bad: float = 0.05
    alpha_good: float = 0.05
    maturity_seconds: float = 300
    shadow_deadline_seconds: float = 3 * 86400
    canary_deadline_seconds: float = 7 * 86400
    max_sessions: int = 2000
    """Canary sessions in all; without a verdict by then the rollout is inconclusive."""
    audit_rate: float = 1.0
    cooldown_seconds: float = 3600
    """After a rollback or an inconclusive end the task takes no new candidate for this long."""
    when_open: WhenOpen = "queue"
    """What opening this rollout does to an open one: end it, or wait for it."""
    approval: bool = False
    """Whether a person has to agree before an adapter that was shown good is promoted."""
    approval_seconds: float = 86400
    """How long that person is waited for; then the champion stays."""
    pause_seconds: float = 86400
    """Longest pause; a rollout that is not resumed by then ends inconclusive."""
    slow_seconds: float = 10
    """An answer of the canary that takes longer is slow: the latency it must not collapse beyond."""
    latency_objective_seconds: float | None = None
    """Answers above it count against either arm. None: measured of the champion in the shadow, and
    frozen with the rollout when the canary begins; without a shadow latency is not judged."""
    latency_floor_seconds: float = 5
    """A measured objective is never below this."""
    escalation_allowance: float | None = None
    """Share of calls that may escalate beside the teacher, which never does; None: not judged there."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a rollout needs at least one canary step, for example steps=[0.1]")
        if any(not 0 < share <= 1 for share in self.steps):
            raise ValueError(f"canary steps are shares above 0 and at most 1, got {self.steps}")
        if any(later <= sooner for sooner, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"canary steps must rise strictly, got {self.steps}")
        if self.shadow_sessions < 0 or self.step_sessions < 1 or self.max_sessions < 1:
            raise ValueError("shadow_sessions is 0 or more; step_sessions, max_sessions at least 1")
        if self.max_sessions < self.step_sessions:
            raise ValueError(
                f"max_sessions ({self.max_sessions}) is below step_sessions ({self.step_sessions}): "
                "the rollout could only end inconclusive"
            )
        deadlines = (
            self.shadow_deadline_seconds,
            self.canary_deadline_seconds,
            self.approval_seconds,
            self.pause_seconds,
        )
        if min(deadlines) <= 0:
            raise ValueError("every state has a deadline above 0 seconds, also a pause")
        if self.slow_seconds <= 0 or self.latency_floor_seconds <= 0:
            raise ValueError("slow_seconds and latency_floor_seconds are above 0")
        if self.cooldown_seconds < 0:
            raise ValueError("cooldown_seconds is 0 or more")
        if self.when_open not in ("supersede", "queue"):
            raise ValueError(f"when_open is 'supersede' or 'queue', got {self.when_open!r}")

    def unreachable(self) -> str | None:
        """Why no rollout under these terms could ever be promoted, or None.

        Apart from ``__post_init__``, because what was stored by an older release must stay readable.
        """
        if self.steps[-1] >= 1:
            return (
                "a step of 100 % leaves no champion to compare the canary with: "
                "let [rollout] steps end below 1, for example at 0.5"
            )
        needed = fewest_sessions(self.margin, self.alpha_good)
        if self.max_sessions < needed:
            return (
                f"a margin of {self.margin:g} at an error rate of {self.alpha_good:g} cannot be "
                f"shown with fewer than {needed} canary sessions, even if neither side errs once, and "
                f"[rollout] max_sessions is {self.max_sessions}: raise it, or margin, or alpha_good"
            )
        if self.maturity_seconds >= self.canary_deadline_seconds:
            return (
                f"no session is settled before {self.maturity_seconds:g} seconds "
                "([rollout] maturity_seconds), and the canary ends after "
                f"{self.canary_deadline_seconds:g} (canary_deadline_seconds)"
            )
        return None

    @property
    def pending_deadline_seconds(self) -> float:
        """Longest wait for its turn: as long as the states of a rollout ahead of it may last."""
        return self.shadow_deadline_seconds + self.canary_deadline_seconds

    @classmethod
    def from_settings(
        cls, settings: RolloutSettings, *, when_open: WhenOpen | None = None
    ) -> RolloutPolicy:
        values = settings.model_dump(include={field.name for field in fields(cls)})
        if when_open is not None:
            values["when_open"] = when_open
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "steps": list(self.steps)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RolloutPolicy:
        """The stored terms; fields that a newer release added are ignored by an older one."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in stored.items() if name in known}
        values["steps"] = tuple(values.get("steps", cls.steps))
        return cls(**values)


def fewest_sessions(margin: float, alpha: float) -> int:
    """Canary sessions below which no valid test promotes while neither side errs.

    Beside a champion that never errs, a canary that errs in ``margin`` of its sessions must be
    promoted with a chance of at most ``alpha``, and n good sessions in a row happen to it with a
    chance of (1 - margin)^n. Only a champion that is seen to err more could be beaten sooner.
    """
    return math.ceil(math.log(1 / alpha) / -math.log1p(-margin))
