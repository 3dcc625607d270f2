"""Every address of the read API, declared once: the router and the OpenAPI document are made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from serving.registry.documents import Document
from serving.registry.reading import queries
from serving.registry.reading.queries import Asked

PATH_PARAMETERS: Mapping[str, str] = {
    "task": "A task's id",
    "adapter": "An adapter's name, task@digest",
    "digest": "A digest, 64 hexadecimal characters",
    "rollout": "A rollout's id",
}


@dataclass(frozen=True)
class Operation:
    """A GET that reads one document, or one page of them, from the database."""

    path: str
    name: str
    """The operation's id in the OpenAPI document."""
    summary: str
    answer: Callable[[Connection, Asked], Document]
    schema: str
    """Name of the document's schema, or of a page's items."""
    filters: Mapping[str, str] = field(default_factory=dict)
    """Query parameters that narrow a list down, and what each means."""
    paged: bool = False

    @property
    def query_parameters(self) -> frozenset[str]:
        return frozenset(self.filters) | (
            frozenset({"after", "limit"}) if self.paged else frozenset()
        )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "/v1/tasks",
        "listTasks",
        "The tasks found in the logs, newest first",
        queries.list_tasks,
        "Task",
        {"state": "observed, candidate, specialized or retired"},
        paged=True,
    ),
    Operation(
        "/v1/tasks/{task}",
        "readTask",
        "One task, with its route",
        queries.one_task,
        "WholeTask",
    ),
    Operation(
        "/v1/tasks/{task}/history",
        "listTaskHistory",
        "Events of a task, its adapters and its rollouts, newest first",
        queries.task_events,
        "Event",
        paged=True,
    ),
    Operation(
        "/v1/adapters",
        "listAdapters",
        "The adapters, newest first",
        queries.list_adapters,
        "Adapter",
        {
            "task": "Of this task only",
            "state": "registered, rejected or retired",
            "dataset": "That learned from this data set, by its whole digest",
        },
        paged=True,
    ),
    Operation(
        "/v1/adapters/{adapter}",
        "readAdapter",
        "One adapter, with its manifest and its scorecards",
        queries.one_adapter,
        "WholeAdapter",
    ),
    Operation(
        "/v1/datasets",
        "listDatasets",
        "The data set versions, newest first",
        queries.list_datasets,
        "Dataset",
        {"task": "Of this task only"},
        paged=True,
    ),
    Operation(
        "/v1/datasets/{digest}",
        "readDataset",
        "One data set version, with its manifest",
        queries.one_dataset,
        "WholeDataset",
    ),
    Operation(
        "/v1/datasets/{digest}/objects",
        "listDatasetObjects",
        "The log objects that a data set was made of, by key",
        queries.dataset_objects,
        "Source",
        paged=True,
    ),
    Operation(
        "/v1/scorecards",
        "listScorecards",
        "How adapters were judged, newest first",
        queries.list_scorecards,
        "Scorecard",
        {"adapter": "Of this adapter only", "dataset": "On this data set only"},
        paged=True,
    ),
    Operation(
        "/v1/scorecards/{digest}",
        "readScorecard",
        "One scorecard, with all scores and the gate's evidence",
        queries.one_scorecard,
        "WholeScorecard",
    ),
    Operation(
        "/v1/rollouts",
        "listRollouts",
        "The rollouts, newest first",
        queries.list_rollouts,
        "Rollout",
        {
            "task": "Of this task only",
            "adapter": "Of this adapter only",
            "state": "pending, shadow, canary, promoted, rolled_back, inconclusive or superseded",
        },
        paged=True,
    ),
    Operation(
        "/v1/rollouts/{rollout}",
        "readRollout",
        "One rollout, with its policy and its evidence",
        queries.one_rollout,
        "WholeRollout",
    ),
    Operation(
        "/v1/routes",
        "listRoutes",
        "Who answers each task that was ever routed, by task",
        queries.list_routes,
        "Route",
        paged=True,
    ),
    Operation(
        "/v1/routes/{task}",
        "readRoute",
        "Who answers one task; version 0 while no route was ever written",
        queries.one_route,
        "Route",
    ),
    Operation(
        "/v1/events",
        "listEvents",
        "Who changed what, when and why, newest first",
        queries.list_events,
        "Event",
        {
            "subject": "Of this task, adapter or rollout only",
            "what": "Of this kind only, such as route.changed",
            "actor": "By this one only",
        },
        paged=True,
    ),
)
