"""What the registry holds, as frozen values. Times are aware and in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Row

from infra.database.events import Event
from serving.rollout.machine import OPEN, Approval, Stage, State, TaskPolicy
from serving.rollout.policy import RolloutPolicy

__all__ = [
    "TEACHER",
    "Adapter",
    "AdapterState",
    "AnswerLineage",
    "ApprovalPolicy",
    "DatasetLineage",
    "DatasetVersion",
    "Event",
    "Lineage",
    "ObjectLineage",
    "Rollout",
    "Route",
    "Scorecard",
    "Task",
]

TEACHER = "teacher"
"""The champion of a task that no adapter answers: always a valid target of a rollback."""

ApprovalPolicy = Literal["auto", "approve"]
AdapterState = Literal["registered", "rejected", "retired"]


@dataclass(frozen=True)
class Task:
    id: str
    name: str
    state: str
    policy: TaskPolicy
    approval: ApprovalPolicy | None
    """Whether a person agrees to its promotions; None: as ``[rollout] approval`` says."""
    tag: str | None
    signature: str
    centroid: tuple[float, ...]
    radius: float
    size: int
    details: Mapping[str, Any]
    version: int
    created: datetime
    updated: datetime

    @classmethod
    def from_row(cls, row: Row[Any]) -> Task:
        values = dict(row._mapping)
        return cls(**{**values, "centroid": tuple(values["centroid"])})


@dataclass(frozen=True)
class DatasetVersion:
    digest: str
    task_id: str
    location: str
    manifest: Mapping[str, Any]
    created: datetime


@dataclass(frozen=True)
class Adapter:
    name: str
    task_id: str
    digest: str
    dataset_digest: str
    spec_digest: str
    location: str
    manifest: Mapping[str, Any]
    threshold: float | None
    state: AdapterState
    created: datetime


@dataclass(frozen=True)
class Scorecard:
    digest: str
    adapter: str
    dataset_digest: str
    body: Mapping[str, Any]
    gate: Mapping[str, Any]
    created: datetime

    @property
    def verdict(self) -> str:
        """The gate's: pass, fail or inconclusive; empty when it has none."""
        return str(self.gate.get("verdict", ""))


@dataclass(frozen=True)
class Route:
    """Who answers a task. Version 0: no row yet, the teacher answers everything."""

    task_id: str
    champion: str = TEACHER
    candidate: str | None = None
    rollout_id: str | None = None
    stage: Stage = "none"
    weight: float = 0.0
    salt: str = ""
    version: int = 0
    fence: int = 0
    updated: datetime | None = None
    """When the route was last changed or tended; None at version 0."""

    def to_json(self) -> dict[str, Any]:
        """For events: the route without its bookkeeping of time."""
        return {name: value for name, value in asdict(self).items() if name != "updated"}


@dataclass(frozen=True)
class Rollout:
    """One adapter being brought in.

    ``evidence`` holds: ``salt`` and ``champion`` (what it is compared with), ``step`` (``entered``,
    ``route_version``), ``latency_objective_seconds`` (frozen when the canary began), ``counts``,
    ``verdicts``, ``observed`` (the observer's own numbers), and ``gate_override`` if it was let past
    the gate; ``paused`` (``at``, ``by``, ``left_seconds``) while it
    is, and ``approval`` (``at``, ``by``, ``is``) from when one was asked for.
    """

    id: str
    task_id: str
    adapter: str
    state: State
    step: int
    policy: RolloutPolicy
    evidence: Mapping[str, Any]
    sessions: int
    reason: str
    version: int
    created: datetime
    entered: datetime
    deadline: datetime

    @classmethod
    def from_row(cls, row: Row[Any]) -> Rollout:
        values = dict(row._mapping)
        values["policy"] = RolloutPolicy.from_json(values["policy"])
        return cls(**values)

    @property
    def open(self) -> bool:
        return self.state in OPEN

    @property
    def salt(self) -> str:
        return str(self.evidence["salt"])

    @property
    def champion(self) -> str | None:
        """Whom the candidate is compared with; None while it waits for its turn."""
        return cast("str | None", self.evidence.get("champion"))

    @property
    def latency_objective_seconds(self) -> float | None:
        """The terms' own, else the champion's as it was frozen; None: latency is not judged."""
        frozen = cast("float | None", self.evidence.get("latency_objective_seconds"))
        stated = self.policy.latency_objective_seconds
        return frozen if stated is None else stated

    @property
    def step_entered(self) -> datetime:
        """When the present step of the canary (or the present state) began."""
        step = self.evidence.get("step") or {}
        return datetime.fromisoformat(step["entered"]) if "entered" in step else self.entered

    @property
    def step_route_version(self) -> int | None:
        """Calls answered under this route version or a later one belong to the present step."""
        step = self.evidence.get("step") or {}
        return cast("int | None", step.get("route_version"))

    @property
    def paused(self) -> bool:
        return bool(self.evidence.get("paused"))

    @property
    def paused_left_seconds(self) -> float:
        """What was left of the state's deadline when it was paused; 0 when it is not."""
        return float((self.evidence.get("paused") or {}).get("left_seconds", 0.0))

    @property
    def approval(self) -> Approval:
        """Whether a person was asked to agree to the promotion, and has."""
        return cast("Approval", (self.evidence.get("approval") or {}).get("is", "none"))

    @property
    def gate_override(self) -> str | None:
        """Why this adapter was let past the gate, if it was."""
        return cast("str | None", self.evidence.get("gate_override"))


@dataclass(frozen=True)
class Lineage:
    """Where an adapter comes from and what became of it."""

    adapter: Adapter
    dataset: DatasetVersion
    source_objects: tuple[str, ...]
    """Keys of the log objects that the data set was made of, in order."""
    base_model: str | None
    base_digest: str | None
    scorecards: tuple[Scorecard, ...]
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class DatasetLineage:
    """What a data set was made of, and who learned from it (oldest first)."""

    dataset: DatasetVersion
    source_objects: tuple[str, ...]
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class ObjectLineage:
    """What was learned from one log object."""

    key: str
    state: str | None
    """Of its taking in: claimed, done, expired (cleared away since); None: never begun."""
    ingested: datetime | None
    datasets: tuple[DatasetVersion, ...]
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class AnswerLineage:
    """Who gave one answer, and what stands behind it. Nothing of what was said."""

    call_id: str
    time: datetime
    tenant: str
    task_id: str | None
    object_key: str
    """The log object that the call's record lies in."""
    model: str
    adapter_name: str | None
    arm: str | None
    rollout_id: str | None
    route_version: int | None
    escalation: str | None
    adapter: Lineage | None
    """None: the teacher answered, or this registry does not know the adapter."""
    rollout: Rollout | None
