"""What each address of the read API answers: parameters in, a JSON document out.

Every function but ``lineage`` works in one read transaction and returns one bounded document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, or_, select

from infra.database.events import Event
from infra.database.tables import (
    adapters,
    dataset_sources,
    dataset_versions,
    events,
    rollouts,
    routes,
    scorecards,
    tasks,
)
from infra.objects.store import ObjectStore
from serving.registry import documents
from serving.registry import lineage as tracing
from serving.registry.catalogue import read_adapter, read_dataset, read_scorecards
from serving.registry.documents import Document
from serving.registry.errors import Unknown
from serving.registry.openings import read_rollout
from serving.registry.reading.pages import BadRequest, Order, clean_text, page
from serving.registry.records import Adapter, DatasetVersion, Rollout, Route, Scorecard, Task
from serving.registry.registry import Registry
from serving.registry.routes import read_route
from serving.registry.task_rows import read_task

KINDS = ("adapter", "call", "dataset", "object")
CALL_SECONDS = 20.0
"""How long the log is searched for one call."""


@dataclass(frozen=True)
class Asked:
    """One request, checked: path and query parameters by name, and the page that is wanted."""

    parameters: Mapping[str, str]
    after: str | None = None
    limit: int = 50

    def get(self, name: str) -> str | None:
        return self.parameters.get(name)

    def __getitem__(self, name: str) -> str:
        return self.parameters[name]


def list_tasks(connection: Connection, asked: Asked) -> Document:
    query = _filtered(select(tasks), asked, {"state": tasks.c.state})
    order = Order((tasks.c.created, tasks.c.id))
    return _page(
        connection, query, order, asked, lambda row: documents.task_document(Task.from_row(row))
    )


def one_task(connection: Connection, asked: Asked) -> Document:
    task = read_task(connection, asked["task"])
    route = documents.route_document(read_route(connection, task.id))
    return {**documents.task_document(task, whole=True), "route": route}


def task_events(connection: Connection, asked: Asked) -> Document:
    task_id = read_task(connection, asked["task"]).id
    own = or_(
        events.c.subject == task_id,
        events.c.subject.in_(select(adapters.c.name).where(adapters.c.task_id == task_id)),
        events.c.subject.in_(select(rollouts.c.id).where(rollouts.c.task_id == task_id)),
    )
    return _events(connection, select(events).where(own), asked)


def list_adapters(connection: Connection, asked: Asked) -> Document:
    filters = {
        "task": adapters.c.task_id,
        "state": adapters.c.state,
        "dataset": adapters.c.dataset_digest,
    }
    order = Order((adapters.c.created, adapters.c.name))
    return _page(
        connection,
        _filtered(select(adapters), asked, filters),
        order,
        asked,
        lambda row: documents.adapter_document(Adapter(**row._mapping)),
    )


def one_adapter(connection: Connection, asked: Asked) -> Document:
    adapter = read_adapter(connection, asked["adapter"])
    cards = read_scorecards(connection, adapter.name)
    return {
        **documents.adapter_document(adapter, whole=True),
        "scorecards": [documents.scorecard_document(card) for card in cards],
    }


def list_datasets(connection: Connection, asked: Asked) -> Document:
    table = dataset_versions
    return _page(
        connection,
        _filtered(select(table), asked, {"task": table.c.task_id}),
        Order((table.c.created, table.c.digest)),
        asked,
        lambda row: documents.dataset_document(DatasetVersion(**row._mapping)),
    )


def one_dataset(connection: Connection, asked: Asked) -> Document:
    return documents.dataset_document(read_dataset(connection, asked["digest"]), whole=True)


def dataset_objects(connection: Connection, asked: Asked) -> Document:
    digest = read_dataset(connection, asked["digest"]).digest
    query = select(dataset_sources.c.object_key).where(dataset_sources.c.dataset_digest == digest)
    order = Order((dataset_sources.c.object_key,), descending=False)
    return _page(connection, query, order, asked, lambda row: {"object": row.object_key})


def list_scorecards(connection: Connection, asked: Asked) -> Document:
    filters = {"adapter": scorecards.c.adapter, "dataset": scorecards.c.dataset_digest}
    return _page(
        connection,
        _filtered(select(scorecards), asked, filters),
        Order((scorecards.c.created, scorecards.c.digest)),
        asked,
        lambda row: documents.scorecard_document(Scorecard(**row._mapping)),
    )


def one_scorecard(connection: Connection, asked: Asked) -> Document:
    row = connection.execute(
        select(scorecards).where(scorecards.c.digest == asked["digest"])
    ).one_or_none()
    if row is None:
        raise Unknown("no scorecard of that digest: /v1/scorecards lists those there are")
    return documents.scorecard_document(Scorecard(**row._mapping), whole=True)


def list_rollouts(connection: Connection, asked: Asked) -> Document:
    filters = {
        "task": rollouts.c.task_id,
        "adapter": rollouts.c.adapter,
        "state": rollouts.c.state,
    }
    return _page(
        connection,
        _filtered(select(rollouts), asked, filters),
        Order((rollouts.c.created, rollouts.c.id)),
        asked,
        lambda row: documents.rollout_document(Rollout.from_row(row)),
    )


def one_rollout(connection: Connection, asked: Asked) -> Document:
    return documents.rollout_document(read_rollout(connection, asked["rollout"]), whole=True)


def list_routes(connection: Connection, asked: Asked) -> Document:
    order = Order((routes.c.task_id,), descending=False)
    return _page(
        connection,
        select(routes),
        order,
        asked,
        lambda row: documents.route_document(Route(**row._mapping)),
    )


def one_route(connection: Connection, asked: Asked) -> Document:
    task = read_task(connection, asked["task"])
    return documents.route_document(read_route(connection, task.id))


def list_events(connection: Connection, asked: Asked) -> Document:
    filters = {"subject": events.c.subject, "what": events.c.what, "actor": events.c.actor}
    return _events(connection, _filtered(select(events), asked, filters), asked)


def lineage(registry: Registry, store: ObjectStore, asked: Asked) -> Document:
    """Raises BadRequest, Unknown, CallNotFound, ObjectStoreError."""
    what, kind = asked["of"], asked.get("kind")
    if kind is None:
        kind = tracing.kind_of(what)
    if kind not in KINDS:
        raise BadRequest(f"kind is one of {', '.join(KINDS)}")
    if kind == "adapter":
        return documents.lineage_document(registry.lineage(what))
    if kind == "dataset":
        return documents.dataset_lineage_document(registry.dataset_lineage(what))
    if kind == "object":
        return documents.object_lineage_document(registry.object_lineage(what))
    found = registry.answer_lineage(store, what, within_seconds=CALL_SECONDS)
    return documents.answer_lineage_document(found)


def _events(connection: Connection, query: Select[Any], asked: Asked) -> Document:
    return _page(
        connection,
        query,
        Order((events.c.id,)),
        asked,
        lambda row: documents.event_document(Event(**row._mapping)),
    )


def _filtered(query: Select[Any], asked: Asked, columns: Mapping[str, Any]) -> Select[Any]:
    for name, column in columns.items():
        value = asked.get(name)
        if value is not None:
            query = query.where(column == clean_text(name, value))
    return query


def _page(
    connection: Connection,
    query: Select[Any],
    order: Order,
    asked: Asked,
    make: Callable[[Any], Document],
) -> Document:
    return page(connection, query, order, make, after=asked.after, limit=asked.limit)
