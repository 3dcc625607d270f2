"""The routes as one frozen snapshot: what the gateway answers by.

The gateway answers from a snapshot alone. It needs the database only to learn of changes
(``snapshot_rows.py``), and its copy on disk (``snapshot_file.py``) lets it start with everything
else down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from infra.calls.record import utc_now
from infra.prompting.confidence import MEAN
from infra.prompting.template import PromptFormat

Stage = Literal["none", "shadow", "canary"]
TEACHER = "teacher"


@dataclass(frozen=True)
class AdapterRoute:
    """What the gateway must know of an adapter to serve it."""

    name: str
    digest: str
    location: str
    """Key prefix in the object store."""
    format: Mapping[str, Any]
    """PromptFormat as a dict."""
    threshold: float | None
    """Least confidence that is shown; None: every answer that passes the checks."""
    confidence: str = MEAN
    """Which score the threshold is for."""
    learned: tuple[str, ...] = ()
    """Tasks merged into its own whose calls it has learned from."""

    @cached_property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat.from_dict(self.format)

    def knows(self, *, same_signature: bool, same_frame: bool) -> bool:
        """Whether a call's structure is one that the adapter was trained on.

        What it was trained without must be what it has learnt by heart: a dropped system prompt
        is vouched for by the signature alone, dropped tools or response format by their names.

        Args:
            same_signature: the call has the task's signature.
            same_frame: it has the task's tools and response format.
        """
        form = self.prompt_format
        if same_signature:
            return True
        return not form.drop_system and (
            same_frame or not (form.drop_tools or form.drop_response_format)
        )


@dataclass(frozen=True)
class TaskRoute:
    """One task: how calls are recognised as its own, and who answers them."""

    id: str
    name: str = ""
    policy: str = "specialize"
    tag: str | None = None
    tenant: str | None = None
    """Only calls of this tenant; None: of all."""
    signature: str = ""
    frame: str = ""
    """Its tools and response format, see ``frame_of``; empty when not known."""
    centroid: tuple[float, ...] = ()
    radius: float = 0.0
    """Cosine distance that still belongs."""
    champion: AdapterRoute | None = None
    """None: the teacher."""
    candidate: AdapterRoute | None = None
    stage: Stage = "none"
    weight: float = 0.0
    salt: str = ""
    rollout_id: str | None = None
    version: int = 0
    updated: datetime | None = None
    """When the route was last changed or tended."""
    audit_rate: float | None = None
    """Of the open rollout's policy; None: the gateway's own."""
    merged_into: str | None = None
    """The task whose calls its own are: who answers those."""
    by_signature: bool = False
    """Of a tag's calls only those of this signature: a person split them off."""
    slow_seconds: float | None = None
    """An answer of the candidate that takes longer is slow; of the open rollout's policy."""

    def adapters(self) -> tuple[AdapterRoute, ...]:
        """Those the engine must hold: none for a task that is left to the teacher.

        A candidate is among them before its first stage: it is exposed once it is loaded.
        """
        if self.policy == "teacher":
            return ()
        return tuple(adapter for adapter in (self.champion, self.candidate) if adapter is not None)


@dataclass(frozen=True)
class KeyRoute:
    """What the gateway must know of an API key."""

    tenant: str
    role: str = "call"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires: datetime | None = None

    @property
    def limited(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


@dataclass(frozen=True)
class Snapshot:
    tasks: tuple[TaskRoute, ...] = ()
    keys: Mapping[str, KeyRoute] = field(default_factory=dict)
    """By hash, without revoked ones."""
    taken: datetime | None = None
    """When the database was last read; None: never."""

    def adapters(self) -> dict[str, AdapterRoute]:
        """Every adapter that some route names, by name. Read only."""
        return self._adapters

    @cached_property
    def _adapters(self) -> dict[str, AdapterRoute]:
        return {adapter.name: adapter for task in self.tasks for adapter in task.adapters()}

    def age_seconds(self, now: datetime | None = None) -> float | None:
        if self.taken is None:
            return None
        return max(0.0, ((now or utc_now()) - self.taken).total_seconds())

    def seen_again(self, now: datetime) -> Snapshot:
        return replace(self, taken=now)

    def says(self, other: Snapshot) -> bool:
        """Whether both say the same, whenever they were read."""
        return self.tasks == other.tasks and self.keys == other.keys


def frame_of(tools: Sequence[str], response_kind: str, response_name: str) -> str:
    """What a call asks for apart from its text: tool names and response format, as one string."""
    return json.dumps([sorted(tools), response_kind, response_name])
