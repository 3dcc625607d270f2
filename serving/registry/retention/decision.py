"""What may be thrown away, with the reason for everything kept or let go. Pure.

The order of the checks is the safety argument: what a route or an open rollout names comes first, then
what a rollback may go to, then what the newest adapters need, and only then age.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from infra.database.garbage import Kind, MarkState
from infra.settings.operating import Retention

LET_GO = "it was let go before"


@dataclass(frozen=True)
class Stay:
    """An adapter as the decision sees it."""

    name: str
    task_id: str
    location: str
    dataset_digest: str
    state: Literal["registered", "rejected", "retired"]
    created: datetime
    last: datetime
    """When something last happened to it: registered, moved, rolled out, taken off a route."""


@dataclass(frozen=True)
class DatasetStay:
    digest: str
    task_id: str
    location: str
    created: datetime


@dataclass(frozen=True)
class Inventory:
    """Everything that the decision rests on, read at one time."""

    now: datetime
    adapters: tuple[Stay, ...] = ()
    datasets: tuple[DatasetStay, ...] = ()
    routed: Mapping[str, str] = field(default_factory=dict)
    """Adapter to what it is on a route: champion or candidate."""
    rolling: Mapping[str, str] = field(default_factory=dict)
    """Adapter to its open rollout."""
    draining: frozenset[str] = frozenset()
    """Adapters taken off a route a moment ago: answers may be under way."""
    past_champions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Task to those who answered before, newest first."""
    stored: frozenset[str] = frozenset()
    """Locations under which there are objects."""
    marks: Mapping[str, MarkState] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What is to become of one location."""

    kind: Kind
    location: str
    subject: str
    """The adapter's name, the data set's digest; the location where the registry knows neither."""
    keep: bool
    why: str
    orphan: bool = False
    """The registry knows nothing of it."""


def decide(inventory: Inventory, policy: Retention) -> list[Verdict]:
    """A verdict on every adapter and data set that is stored or registered, and not gone already."""
    adapters = [_adapter(inventory, policy, stay) for stay in inventory.adapters]
    # Until it is condemned an adapter may be wanted again, and then its data set with it.
    used = {
        stay.dataset_digest: stay.name
        for stay, verdict in zip(inventory.adapters, adapters, strict=True)
        if verdict.keep or not _let_go(inventory, stay.location)
    }
    datasets = [_dataset(inventory, policy, stay, used) for stay in inventory.datasets]
    verdicts = [*adapters, *datasets, *_orphans(inventory)]
    return [verdict for verdict in verdicts if not _gone(inventory, verdict)]


def kind_of(location: str) -> Kind | None:
    """``adapters/<task>/<digest>`` and ``datasets/<task>/<digest>``; None for any other place."""
    parts = location.split("/")
    if len(parts) != 3:
        return None
    kinds: dict[str, Kind] = {"adapters": "adapter", "datasets": "dataset"}
    return kinds.get(parts[0])


def belongings(location: str) -> tuple[str, ...]:
    """Key prefixes of what goes with a location: its objects, the reports made of it."""
    kind = kind_of(location)
    if kind is None:
        raise ValueError(f"{location} is neither an adapter's place nor a data set's")
    _, task, digest = location.split("/")
    if kind == "adapter":
        return (f"{location}/", f"reports/{task}@{digest[:16]}/")
    return (
        f"{location}/",
        f"reports/base/{digest[:16]}-",
        f"reports/drift/{task}-{digest[:16]}/",
        f"reports/judge/{digest}/",
        f"reports/labels/{digest}/",
    )


def _adapter(inventory: Inventory, policy: Retention, stay: Stay) -> Verdict:
    def keep(why: str) -> Verdict:
        return Verdict("adapter", stay.location, stay.name, True, why)

    if stay.name in inventory.routed:
        return keep(f"it is the {inventory.routed[stay.name]} of {stay.task_id}")
    if stay.name in inventory.rolling:
        return keep(f"rollout {inventory.rolling[stay.name]} is open")
    if stay.name in inventory.draining:
        return keep("it was on a route a moment ago")
    if stay.state == "registered":
        past = inventory.past_champions.get(stay.task_id, ())
        may_answer = {
            one.name
            for one in inventory.adapters
            if one.task_id == stay.task_id and one.state == "registered"
        }
        targets = [name for name in past if name in may_answer][: policy.past_champions]
        if stay.name in targets:
            return keep("a rollback may go back to it")
    if _let_go(inventory, stay.location):
        return Verdict("adapter", stay.location, stay.name, False, LET_GO)
    if stay.name in _newest(
        (
            (one.created, one.name)
            for one in inventory.adapters
            if one.task_id == stay.task_id and not _let_go(inventory, one.location)
        ),
        policy.adapters_per_task,
    ):
        return keep(f"it is one of the {policy.adapters_per_task} newest of {stay.task_id}")
    left = timedelta(seconds=policy.adapter_seconds) - (inventory.now - stay.last)
    if left > timedelta(0):
        return keep(f"something happened to it lately; {_span(left)} are left")
    why = f"{stay.state}, named by nothing, untouched for {_span(inventory.now - stay.last)}"
    return Verdict("adapter", stay.location, stay.name, False, why)


def _dataset(
    inventory: Inventory, policy: Retention, stay: DatasetStay, used: Mapping[str, str]
) -> Verdict:
    def keep(why: str) -> Verdict:
        return Verdict("dataset", stay.location, stay.digest, True, why)

    if stay.digest in used:
        return keep(f"{used[stay.digest]} learned from it")
    if _let_go(inventory, stay.location):
        return Verdict("dataset", stay.location, stay.digest, False, LET_GO)
    if stay.digest in _newest(
        (
            (one.created, one.digest)
            for one in inventory.datasets
            if one.task_id == stay.task_id and not _let_go(inventory, one.location)
        ),
        policy.datasets_per_task,
    ):
        return keep(f"it is one of the {policy.datasets_per_task} newest of {stay.task_id}")
    age = inventory.now - stay.created
    left = timedelta(seconds=policy.dataset_seconds) - age
    if left > timedelta(0):
        return keep(f"{_span(left)} are left")
    why = f"no adapter that is left learned from it, {_span(age)} old"
    return Verdict("dataset", stay.location, stay.digest, False, why)


def _orphans(inventory: Inventory) -> list[Verdict]:
    known = {stay.location for stay in inventory.adapters}
    known |= {stay.location for stay in inventory.datasets}
    found = []
    for location in sorted(inventory.stored - known):
        kind = kind_of(location)
        if kind is not None:
            why = "the registry does not know it: left by a night that was cut short"
            found.append(Verdict(kind, location, location, False, why, orphan=True))
    return found


def _let_go(inventory: Inventory, location: str) -> bool:
    """Its files were condemned and may be gone: it must not take the place of one that is whole."""
    return inventory.marks.get(location) in ("condemned", "removed")


def _gone(inventory: Inventory, verdict: Verdict) -> bool:
    """Nothing is left to decide: its files were removed, and none have come back."""
    removed = inventory.marks.get(verdict.location) == "removed"
    return removed and verdict.location not in inventory.stored


def _newest(dated: Iterable[tuple[datetime, str]], count: int) -> set[str]:
    return {name for _, name in sorted(dated, reverse=True)[:count]}


def _span(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"
