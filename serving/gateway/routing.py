"""Which task a call belongs to: the caller's tag, then structure and prompt, else none. Pure.

The router abstains readily: a call without a task goes to the teacher and is still logged, so the
price of abstaining is a missed saving, and the price of guessing is a wrong answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from infra.tasks.embedding import Vector, embed, nearest, prompt_text
from infra.tasks.signature import signature
from serving.gateway.routes import Snapshot, TaskRoute, frame_of

MODEL_PREFIX = "nightschool/"
How = Literal["tag", "model", "signature", "centroid"]


@dataclass(frozen=True)
class Routed:
    """A call's task and how it was found."""

    task: TaskRoute
    how: How
    same_signature: bool
    """Whether the call has the very structure that the task was discovered with."""
    same_frame: bool = False
    """Whether it has at least the task's tools and response format."""

    def fit(self) -> bool:
        """Whether every adapter of the task was trained on calls of this structure."""
        return all(
            adapter.knows(same_signature=self.same_signature, same_frame=self.same_frame)
            for adapter in self.task.adapters()
        )


class Router:
    """An index over one snapshot; made anew for each."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._by_tag: dict[str, TaskRoute] = {}
        self._by_id: dict[str, TaskRoute] = {}
        self._by_signature: dict[str, list[TaskRoute]] = defaultdict(list)
        self._by_frame: dict[str, list[TaskRoute]] = defaultdict(list)
        for task in snapshot.tasks:
            self._by_id[task.id] = task
            if task.tag:
                self._by_tag[task.tag] = task
                continue
            # Tagged tasks are made of tagged calls only; an untagged call is not one of theirs.
            self._by_signature[task.signature].append(task)
            if task.frame:
                self._by_frame[task.frame].append(task)

    def named(self, model: str) -> TaskRoute | None:
        """The task that a model name of ours stands for: ``<task>`` or ``nightschool/<task>``."""
        return self._by_id.get(model.removeprefix(MODEL_PREFIX))

    def route(
        self, request: Mapping[str, Any], tag: str | None, tenant: str, *, look: bool = True
    ) -> Routed | None:
        """The call's task, or None.

        Args:
            request: as sent or anonymized: the parts that are looked at are masked alike.
            look: False for a request too long to look into (that takes seconds of everybody's
                time, and no small model could answer it): then only its tag counts.
        """
        task, how = self._explicit(request, tag)
        if tag is not None and task is None:
            return None  # a tag of its own: discovery will make a task of it
        if not self._by_id or not look or (task is not None and not task.adapters()):
            return _for(Routed(task, how, False), tenant) if task is not None else None
        found = signature(request)
        frame = frame_of(found.tools, found.response_kind, found.response_name)
        if task is None:
            alike = self._by_signature.get(found.digest)
            how = "signature" if alike else "centroid"
            task = _nearest(request, alike or self._by_frame.get(frame) or [])
        if task is None:
            return None
        same = task.signature == found.digest
        return _for(Routed(task, how, same, same or task.frame == frame), tenant)

    def _explicit(
        self, request: Mapping[str, Any], tag: str | None
    ) -> tuple[TaskRoute | None, How]:
        if tag is not None:
            return self._by_tag.get(tag) or self._by_id.get(tag), "tag"
        model = request.get("model")
        return (self.named(model) if isinstance(model, str) else None), "model"


def _nearest(request: Mapping[str, Any], tasks: list[TaskRoute]) -> TaskRoute | None:
    with_centroid = [task for task in tasks if task.centroid]
    if not with_centroid:
        # A task known by its structure alone claims all of that structure.
        return tasks[0] if len(tasks) == 1 else None
    dimensions = len(with_centroid[0].centroid)
    return nearest(_embedded(prompt_text(request), dimensions), with_centroid)


@lru_cache(maxsize=2048)
def _embedded(text: str, dimensions: int) -> Vector:
    # The steps of an agent's loop all have the same user message.
    return embed([text], dimensions)[0]


def _for(routed: Routed, tenant: str) -> Routed | None:
    owner = routed.task.tenant
    return routed if owner is None or owner == tenant else None
