"""From calls and known tasks to members per task. Pure.

Order of precedence, the same as the gateway's: an explicit tag, then the structural signature, then
the nearest centroid within its radius. Known tasks keep their ids; only what none of them claims is
clustered anew, and what is too little stays with no task (and so with the teacher).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from infra.settings.learning import Discovery
from infra.tasks.embedding import Vector, embed, nearest
from infra.tasks.joined import BY_SIGNATURE
from trainers.discover.clusters import Centre, Rival, separate_groups
from trainers.discover.naming import task_id
from trainers.discover.phrases import Phrases, ends_of, instruction, told_by_the_prompt
from trainers.discover.typical import typical_of
from trainers.ingest.features import Features

DEFAULT_TENANT = "default"
MIN_TAGGED_CALLS = 3
MAX_NEW_TASKS = 200
"""Per night; a caller that tags every call differently must not flood the registry."""
STRUCTURED_SHARE = 0.2
"""Of a signature's calls that a group needs where tools or a schema already define the task."""
SPLIT_COVERAGE = 0.7
"""Share of a new signature's calls that clear groups must hold before it is split."""
SPLIT_FLOOR, SPLIT_CEILING, LONE_CEILING = 0.3, 0.95, 1.0


@dataclass(frozen=True)
class Row:
    """One call, as far as discovery looks at it."""

    id: str
    time: datetime
    session: str
    tag: str | None
    features: Features
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True)
class KnownTask:
    id: str
    tag: str | None
    signature: str
    centroid: tuple[float, ...]
    radius: float
    tenant: str | None = None
    """Whose calls it is made of; None: everybody's."""
    part: str | None = None
    """How a person split it off another task, see ``infra.tasks.joined``."""


@dataclass(frozen=True)
class Group:
    """A task as tonight's calls show it."""

    id: str
    name: str
    tag: str | None
    signature: str
    centre: Centre
    medoid: str
    members: tuple[int, ...]
    """Indices into the rows."""
    known: bool
    tenant: str | None = None


@dataclass
class _Open:
    """Members gathered so far for one task."""

    known: KnownTask | None
    members: list[int] = field(default_factory=list)
    lone: bool = True
    tag: str | None = None


def form_groups(
    rows: Sequence[Row], known: Sequence[KnownTask], settings: Discovery
) -> list[Group]:
    """Tonight's groups: known tasks that have calls, then new ones, largest first.

    Each tenant's calls by themselves, unless ``share_between_tenants``. A known task that is everybody's
    becomes that of the tenant with most calls of its structure or tag: from then on it is made of those
    alone, and the others' calls become tasks of their own.
    """
    if settings.share_between_tenants:
        return _form_groups(rows, known, settings, None)
    by_tenant: defaultdict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_tenant[row.tenant].append(index)
    owners = _owners(rows, known)
    found: list[Group] = []
    for tenant, indices in sorted(by_tenant.items()):
        own = [task for task in known if owners.get(task.id, task.tenant) == tenant]
        groups = _form_groups([rows[index] for index in indices], own, settings, tenant)
        found += [
            replace(group, members=tuple(indices[member] for member in group.members))
            for group in groups
        ]
    new = sorted((g for g in found if not g.known), key=lambda g: (-len(g.members), g.id))
    return [*(group for group in found if group.known), *new[:MAX_NEW_TASKS]]


def _owners(rows: Sequence[Row], known: Sequence[KnownTask]) -> dict[str, str]:
    """Of the known tasks that are everybody's: who has most of the calls that may be theirs."""
    tags: defaultdict[str, Counter[str]] = defaultdict(Counter)
    structures: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.tag:
            tags[row.tag][row.tenant] += 1
        else:
            structures[row.features.signature][row.tenant] += 1
    owners = {}
    for task in known:
        if task.tenant is None:
            votes = (tags[task.tag] if task.tag else structures[task.signature]) + tags[task.id]
            if votes:
                owners[task.id] = max(sorted(votes), key=lambda tenant: votes[tenant])
    return owners


def _form_groups(
    rows: Sequence[Row], known: Sequence[KnownTask], settings: Discovery, tenant: str | None
) -> list[Group]:
    space = _Space(rows, settings.dimensions)
    by_tag: defaultdict[str, list[int]] = defaultdict(list)
    by_signature: defaultdict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.tag:
            by_tag[row.tag].append(index)
        else:
            by_signature[row.features.signature].append(index)
    tagged = {task.tag: task for task in known if task.tag and task.part != BY_SIGNATURE}
    parts = {(t.tag or "", t.signature): t for t in known if t.tag and t.part == BY_SIGNATURE}
    by_id = {task.id: task for task in known}
    gathered: list[_Open] = []
    named: dict[str, list[int]] = {}
    for tag, members in sorted(by_tag.items()):
        whole, split = _split_off(members, tag, rows, parts)
        gathered += [_Open(part, own, tag=tag) for part, own in split]
        if not whole:
            continue
        members = whole
        if tag not in tagged and tag in by_id:
            named[tag] = members  # a task's own id is as good a tag
        elif tag in tagged or len(members) >= MIN_TAGGED_CALLS:
            gathered.append(_Open(tagged.get(tag), members, tag=tag))
    for signature, members in sorted(by_signature.items()):
        own = [task for task in known if not task.tag and task.signature == signature]
        gathered += _inside_signature(members, own, rows, space, settings)
    for named_id, members in named.items():
        found = next((i for i in gathered if i.known and i.known.id == named_id), None)
        if found is None:
            found = _Open(by_id[named_id], [], tag=by_id[named_id].tag)
            gathered.append(found)
        found.members = sorted([*found.members, *members])
    old = [item for item in gathered if item.known is not None and item.members]
    new = sorted(
        (item for item in gathered if item.known is None),
        key=lambda item: (-len(item.members), rows[item.members[0]].id),
    )[:MAX_NEW_TASKS]
    return [_group(item, rows, space, settings, tenant) for item in [*old, *new]]


def _split_off(
    members: list[int],
    tag: str,
    rows: Sequence[Row],
    parts: Mapping[tuple[str, str], KnownTask],
) -> tuple[list[int], list[tuple[KnownTask, list[int]]]]:
    """(what stays with the tag's own task, the parts that a person split off it by structure)."""
    if not parts:
        return members, []
    whole: list[int] = []
    split: defaultdict[str, list[int]] = defaultdict(list)
    for index in members:
        signature = rows[index].features.signature
        (split[signature] if (tag, signature) in parts else whole).append(index)
    return whole, [(parts[tag, signature], own) for signature, own in sorted(split.items())]


def _inside_signature(
    members: list[int],
    own: list[KnownTask],
    rows: Sequence[Row],
    space: _Space,
    settings: Discovery,
) -> list[_Open]:
    structured = _structured(rows[members[0]].features)
    need = settings.min_calls
    if structured:
        need = max(need, int(STRUCTURED_SHARE * len(members)))
    if not own:
        if len(members) < settings.min_calls:
            return []
        groups, rest = space.groups(members, need, [])
        if len(groups) < 2 or len(rest) > (1 - SPLIT_COVERAGE) * len(members):
            return [_Open(None, members)]
        return [_Open(None, group, lone=False) for group in groups]
    open_tasks = {task.id: _Open(task, lone=len(own) == 1) for task in own}
    left: list[int] = []
    for index in members:
        found = nearest(space.vector(index), own)
        if found is not None:
            open_tasks[found.id].members.append(index)
        else:
            left.append(index)
    fresh: list[list[int]] = []
    if not structured and len(left) >= need:
        rivals = [(task.centroid, open_tasks[task.id].members) for task in own]
        fresh, left = space.groups(left, need, rivals)
    if structured and len(own) == 1:
        # The structure names the task: it is wider than its radius showed so far.
        open_tasks[own[0].id].members += left
        open_tasks[own[0].id].members.sort()
    return [*open_tasks.values(), *(_Open(None, group, lone=False) for group in fresh)]


def _group(
    item: _Open, rows: Sequence[Row], space: _Space, settings: Discovery, tenant: str | None
) -> Group:
    floor = settings.radius if item.lone else SPLIT_FLOOR
    ceiling = LONE_CEILING if item.lone else SPLIT_CEILING
    structured = _structured(rows[item.members[0]].features)
    if item.known is not None and not (structured and item.lone):
        # Its members were chosen by this radius: to calibrate on them would let it creep.
        floor = ceiling = item.known.radius
    typical = typical_of(
        [rows[index].features for index in item.members],
        space.vectors(item.members),
        floor=floor,
        ceiling=ceiling,
        tag=item.tag,
        split=not item.lone,
    )
    if item.known is not None:
        identity = item.known.id
    else:
        # The tenant's name before it, but for the one that every installation has.
        whose = f"{tenant}\0" if tenant not in (None, DEFAULT_TENANT) else ""
        told = "" if item.lone else typical.prompt
        what = f"tag:{item.tag}" if item.tag else f"{typical.signature}:{told}"
        identity = task_id(typical.words, whose + what)
    return Group(
        id=identity,
        name=typical.name,
        tag=item.tag,
        signature=typical.signature,
        centre=typical.centre,
        medoid=typical.medoid,
        members=tuple(item.members),
        known=item.known is not None,
        tenant=tenant,
    )


def _structured(features: Features) -> bool:
    return features.tools != "[]" or features.response_kind == "json_schema"


class _Space:
    """Embeddings of the rows' prompts; each distinct prompt once."""

    def __init__(self, rows: Sequence[Row], dimensions: int) -> None:
        self._rows = rows
        self._dimensions = dimensions
        positions: dict[str, int] = {}
        self._position = [positions.setdefault(row.features.prompt, len(positions)) for row in rows]
        self._prompts = list(positions)
        self._table = embed(self._prompts, dimensions)

    def vector(self, index: int) -> Vector:
        found: Vector = self._table[self._position[index]]
        return found

    def vectors(self, indices: Sequence[int]) -> Vector:
        found: Vector = self._table[[self._position[index] for index in indices]]
        return found

    def groups(
        self,
        indices: Sequence[int],
        need: int,
        against: Sequence[tuple[Sequence[float], Sequence[int]]],
    ) -> tuple[list[list[int]], list[int]]:
        """(groups of row indices, rows in none), clustered over distinct prompts.

        Args:
            against: centroid and members of tasks that are there already.
        """
        points: dict[int, list[int]] = {}
        for index in indices:
            points.setdefault(self._position[index], []).append(index)
        # Ordered by text, not by arrival: the same calls in another order give the same groups.
        order = sorted(points, key=lambda position: self._prompts[position])
        labels = separate_groups(
            self._table[order],
            embed((self._action(points[position]) for position in order), self._dimensions),
            np.array([len(points[position]) for position in order], dtype=np.int64),
            need,
            [
                Rival(centroid, instruction([self._phrases(index) for index in members]))
                for centroid, members in against
                if len(centroid) == self._dimensions
            ],
            [self._phrases(points[position][0]) for position in order],
        )
        found: defaultdict[int, list[int]] = defaultdict(list)
        for position, label in zip(order, labels, strict=True):
            found[int(label)] += points[position]
        rest = sorted(found.pop(-1, []))
        return [sorted(found[label]) for label in sorted(found)], rest

    def _phrases(self, index: int) -> Phrases:
        """Of a prompt that says itself what is to be done; none of any other."""
        features = self._rows[index].features
        told = not _structured(features) and told_by_the_prompt(features.system_words.split())
        return ends_of(features.prompt) if told else frozenset()

    def _action(self, members: Sequence[int]) -> str:
        return common_action([self._rows[index].features for index in members])


def common_action(members: Sequence[Features]) -> str:
    """What is done most often; of several the first by name."""
    counts: Mapping[str, int] = Counter(feature.action for feature in members)
    return max(sorted(counts), key=lambda action: counts[action])
