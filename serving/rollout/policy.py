"""What was agreed before a rollout began: frozen when it opens and stored in its row.

Margin and error rates must not move while evidence comes in, or the sequential test means nothing;
so a later change of the settings touches later rollouts only.
"""

from __future__ import annotations

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
    margin: float = 0.1
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
        if min(self.shadow_deadline_seconds, self.canary_deadline_seconds) <= 0:
            raise ValueError("every state has a deadline above 0 seconds")
        if self.cooldown_seconds < 0:
            raise ValueError("cooldown_seconds is 0 or more")
        if self.when_open not in ("supersede", "queue"):
            raise ValueError(f"when_open is 'supersede' or 'queue', got {self.when_open!r}")

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
