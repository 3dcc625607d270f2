"""Which task a call belongs to: the caller's tag, then structure and prompt, else none.

The router abstains readily: a call without a task goes to the teacher and is still logged, so the
price of abstaining is a missed saving, and the price of guessing is a wrong answer.

Its cost does not grow with the number of tasks: structure and prompt of a call are looked up before
they are read, and the tasks that share a structure are columns of one matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.tasks.embedding import Vector, embed, nearest, prompt_text
from infra.tasks.joined import home
from serving.gateway.routes import Snapshot, TaskRoute
from serving.gateway.structure import Remembered, Structure, Structures, digest

MODEL_PREFIX = "nightschool/"
How = Literal["tag", "model", "signature", "centroid"]
MAX_DECIDED = 4096
ROUNDING = 1e-4
"""More than the error of a cosine of 32-bit unit vectors; what lies closer is computed in 64 bits."""

Owned = tuple[str, str | None]
"""A structure (signature or frame) and the tenant whose tasks they are; None: everybody's."""

_structures = Structures()  # beyond one snapshot's life


@dataclass(frozen=True)
class Routed:
    """A call's task and how it was found."""

    task: TaskRoute
    how: How
    same_signature: bool
    """Whether the call has the very structure that the task was discovered with."""
    same_frame: bool = False
    """Whether it has at least the task's tools and response format."""
    place: str | None = None
    """The task that it was recognised as, where that is merged into ``task``."""
    structure: Structure | None = None
    """The request's, where it was looked at."""

    def fit(self) -> bool:
        """Whether every adapter of the task was trained on calls of this structure and this place."""
        return all(
            (self.place is None or self.place in adapter.learned)
            and adapter.knows(same_signature=self.same_signature, same_frame=self.same_frame)
            for adapter in self.task.adapters()
        )


class Exact(NamedTuple):
    """A task with its centroid as an array, which a call need not make from the numbers again."""

    task: TaskRoute
    centroid: NDArray[np.float64]

    @property
    def radius(self) -> float:
        return self.task.radius


class Alike:
    """Tasks of one structure, told apart by their centroids.

    Args:
        tasks: at least one.
        before: the group of the same structure in the snapshot before, whose matrix is taken over
            when no centroid has changed.
    """

    def __init__(self, tasks: list[TaskRoute], before: Alike | None = None) -> None:
        self.tasks = tasks
        self._with_centroid = [task for task in tasks if task.centroid]
        self._centroids = [task.centroid for task in self._with_centroid]
        self.dimensions = len(self._centroids[0]) if self._centroids else 0
        same = (
            before is not None
            and len(before._centroids) == len(self._centroids)
            and all(a is b for a, b in zip(before._centroids, self._centroids, strict=True))
        )
        self._matrix: NDArray[np.float32] = (
            before._matrix if before is not None and same else _columns(self._centroids)
        )
        kept = before._exact if before is not None and same else None
        self._exact: list[Exact] = [
            Exact(task, kept[number].centroid if kept else np.asarray(task.centroid))
            for number, task in enumerate(self._with_centroid)
        ]
        # A centroid of another length is a column of zeros; its radius must not let it claim anything.
        self._reach: NDArray[np.float32] = np.asarray(
            [
                task.radius + ROUNDING if len(task.centroid) == self.dimensions else -np.inf
                for task in self._with_centroid
            ],
            dtype=np.float32,
        )

    def nearest(self, vector: Callable[[int], Vector]) -> TaskRoute | None:
        """The task that claims the prompt, as ``infra.tasks.embedding.nearest`` says it.

        Args:
            vector: gives the prompt's embedding of that length.
        """
        if not self._with_centroid:
            return None
        prompt = vector(self.dimensions)
        if len(self._exact) == 1:
            return _task(nearest(prompt, self._exact))
        # A prompt touches a fifth of the dimensions. Not `@`: a BLAS would wake its threads for this.
        touched = np.flatnonzero(prompt)
        distances = 1.0 - np.einsum("ij,i->j", self._matrix[touched], prompt[touched])
        claimed = np.flatnonzero(distances <= self._reach)
        if not len(claimed):
            return None
        close = claimed[distances[claimed] <= distances[claimed].min() + 2 * ROUNDING]
        found = nearest(prompt, [self._exact[index] for index in close])
        if found is None:
            # Only what lay within the rounding claimed it: ask everybody who might.
            found = nearest(prompt, [self._exact[index] for index in claimed])
        return _task(found)

    @property
    def only(self) -> TaskRoute | None:
        """A task known by its structure alone, which claims all of that structure."""
        return self.tasks[0] if len(self.tasks) == 1 and not self._with_centroid else None


Groups = dict[Owned, Alike]


class Router:
    """An index over one snapshot; made anew for each, in the thread that read it.

    ``route`` is for one thread: the event loop's.

    Args:
        before: the router of the snapshot before; what has not changed is taken over.
    """

    def __init__(self, snapshot: Snapshot, before: Router | None = None) -> None:
        self._by_id: dict[str, TaskRoute] = {}
        self._by_tag: dict[tuple[str, str | None], TaskRoute] = {}
        self._parts: dict[tuple[str, str | None], dict[str, TaskRoute]] = defaultdict(dict)
        signatures: dict[Owned, list[TaskRoute]] = defaultdict(list)
        frames: dict[Owned, list[TaskRoute]] = defaultdict(list)
        for task in snapshot.tasks:
            self._by_id[task.id] = task
            if task.tag and task.by_signature:
                self._parts[task.tag, task.tenant][task.signature] = task
                continue
            if task.tag:
                self._by_tag[task.tag, task.tenant] = task
                continue
            # Tagged tasks are made of tagged calls only; an untagged call is not one of theirs.
            signatures[task.signature, task.tenant].append(task)
            if task.frame:
                frames[task.frame, task.tenant].append(task)
        self._into = {task.id: task.merged_into for task in snapshot.tasks if task.merged_into}
        # Of whichever tenant: rather too many than too few.
        self._served = {
            structure
            for groups in (signatures, frames)
            for (structure, _), group in groups.items()
            if any(self._home(task).adapters() for task in group)
        }
        self._by_signature: Groups = _groups(signatures, before._by_signature if before else {})
        self._by_frame: Groups = _groups(frames, before._by_frame if before else {})
        self._decided: Remembered[TaskRoute | None] = Remembered(MAX_DECIDED)

    def named(self, model: str) -> TaskRoute | None:
        """The task that a model name of ours stands for: ``<task>`` or ``nightschool/<task>``."""
        return self._by_id.get(model.removeprefix(MODEL_PREFIX))

    def route(
        self,
        request: Mapping[str, Any],
        tag: str | None,
        tenant: str,
        *,
        look: bool = True,
        found: Structure | None = None,
    ) -> Routed | None:
        """The call's task, or None.

        Args:
            request: as sent or anonymized: the parts that are looked at are masked alike.
            look: False for a request too long to look into (that takes seconds of everybody's
                time, and no small model could answer it): then only its tag counts.
            found: the request's structure, where it was read before.
        """
        task, how = self._explicit(request, tag, tenant, look)
        if tag is not None and task is None:
            return None  # a tag of its own: discovery will make a task of it
        if not self._by_id or not look or (task is not None and not self._home(task).adapters()):
            return self._routed(task, tenant, how, False) if task is not None else None
        found = found or _structures.of(request)
        if task is None:
            how = "signature"
            alike = _of(self._by_signature, found.signature, tenant)
            if not alike:
                how = "centroid"
                alike = _of(self._by_frame, found.frame, tenant)
            task = self._nearest(request, alike) if alike else None
        if task is None:
            return None
        answers = self._home(task)  # it is what was trained, on its structure
        same = answers.signature == found.signature
        frame = same or answers.frame == found.frame
        return self._routed(task, tenant, how, same, frame, found)

    def structure(self, request: Mapping[str, Any], tag: str | None) -> Structure | None:
        """The structure by which ``route`` will find the task; None where the tag or the model says it."""
        if tag is not None or not self._by_id:
            return None
        model = request.get("model")
        if isinstance(model, str) and self.named(model) is not None:
            return None
        return _structures.of(request)

    def served(self, found: Structure) -> bool:
        """Whether a task that may be found by this structure has an adapter. If none has, the teacher can
        be asked before the task is known."""
        return found.signature in self._served or found.frame in self._served

    def _home(self, task: TaskRoute) -> TaskRoute:
        """Who answers: the task itself, or the one that it is merged into."""
        if not task.merged_into:
            return task
        return self._by_id.get(home(task.id, self._into), task)

    def _routed(
        self,
        task: TaskRoute,
        tenant: str,
        how: How,
        same: bool,
        frame: bool = False,
        found: Structure | None = None,
    ) -> Routed | None:
        answers = self._home(task)
        if answers.tenant is not None and answers.tenant != tenant:
            return None
        place = task.id if answers is not task else None
        return Routed(answers, how, same, frame, place, found)

    def _explicit(
        self, request: Mapping[str, Any], tag: str | None, tenant: str, look: bool
    ) -> tuple[TaskRoute | None, How]:
        if tag is not None:
            for owner in (tenant, None):
                parts = self._parts.get((tag, owner)) if look and self._parts else None
                part = parts.get(_structures.of(request).signature) if parts else None
                tagged = part or self._by_tag.get((tag, owner))
                if tagged is not None:
                    return tagged, "tag"
            return self._by_id.get(tag), "tag"
        model = request.get("model")
        return (self.named(model) if isinstance(model, str) else None), "model"

    def _nearest(self, request: Mapping[str, Any], groups: list[Alike]) -> TaskRoute | None:
        if all(group.dimensions == 0 for group in groups):
            return groups[0].only if len(groups) == 1 else None
        text = prompt_text(request)

        def decide() -> TaskRoute | None:
            vector = cache(lambda dimensions: embed([text], dimensions)[0])
            found = [task for group in groups if (task := group.nearest(vector)) is not None]
            if len(found) < 2:
                return found[0] if found else None
            return nearest(vector(groups[0].dimensions), found) or found[0]

        # The steps of an agent's loop all have the same user message.
        prompt = digest(text.encode("utf-8", "surrogatepass"))
        key = b"%d:%d:%b" % (id(groups[0]), id(groups[-1]), prompt)
        return self._decided.get(key, decide)


def _task(found: Exact | None) -> TaskRoute | None:
    return found.task if found is not None else None


def _groups(tasks: Mapping[Owned, list[TaskRoute]], before: Mapping[Owned, Alike]) -> Groups:
    return {key: Alike(group, before.get(key)) for key, group in tasks.items()}


def _of(groups: Mapping[Owned, Alike], structure: str, tenant: str) -> list[Alike]:
    """The caller's own tasks of that structure, then everybody's."""
    own, shared = groups.get((structure, tenant)), groups.get((structure, None))
    return [group for group in (own, shared) if group is not None]


def _columns(centroids: list[tuple[float, ...]]) -> NDArray[np.float32]:
    """Shape (dimensions, centroids); zeros for a centroid of another length than the first."""
    length = len(centroids[0]) if centroids else 0
    matrix = np.zeros((len(centroids), length), dtype=np.float32)
    for row, centroid in enumerate(centroids):
        if len(centroid) == length:
            matrix[row] = centroid
    return np.ascontiguousarray(matrix.T)
