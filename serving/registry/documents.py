"""The registry's records as JSON documents: the same for the command line and the HTTP read API.

A list holds short documents; asked for by name, a record comes with all it has. Times are ISO 8601 in
UTC. The API's schema of each document is in ``reading/openapi.py``; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from infra.database.events import Event
from serving.registry.records import (
    Adapter,
    AnswerLineage,
    DatasetLineage,
    DatasetVersion,
    Lineage,
    ObjectLineage,
    Rollout,
    Route,
    Scorecard,
    Task,
)

Document = dict[str, Any]
MAX_SOURCES = 1000
"""Source objects in one document; a data set's whole list is paged (`/v1/datasets/.../sources`)."""


def task_document(task: Task, *, whole: bool = False) -> Document:
    document: Document = {
        "id": task.id,
        "name": task.name,
        "state": task.state,
        "policy": task.policy,
        "tag": task.tag,
        "calls": task.size,
        "version": task.version,
        "created": moment(task.created),
        "updated": moment(task.updated),
    }
    if whole:
        document |= {
            "signature": task.signature,
            "radius": task.radius,
            "details": dict(task.details),
        }
    return document


def dataset_document(dataset: DatasetVersion, *, whole: bool = False) -> Document:
    document: Document = {
        "digest": dataset.digest,
        "task": dataset.task_id,
        "location": dataset.location,
        "counts": dataset.manifest.get("counts"),
        "created": moment(dataset.created),
    }
    if whole:
        # The sources are a table of their own, and may be a hundred thousand.
        manifest = {name: value for name, value in dataset.manifest.items() if name != "parents"}
        document["manifest"] = manifest
    return document


def adapter_document(adapter: Adapter, *, whole: bool = False) -> Document:
    document: Document = {
        "name": adapter.name,
        "task": adapter.task_id,
        "digest": adapter.digest,
        "dataset": adapter.dataset_digest,
        "spec": adapter.spec_digest,
        "location": adapter.location,
        "threshold": adapter.threshold,
        "state": adapter.state,
        "created": moment(adapter.created),
    }
    if whole:
        document["manifest"] = dict(adapter.manifest)
    return document


def scorecard_document(card: Scorecard, *, whole: bool = False) -> Document:
    document: Document = {
        "digest": card.digest,
        "adapter": card.adapter,
        "dataset": card.dataset_digest,
        "verdict": card.verdict,
        "scores": card.body.get("scores"),
        "coverage": card.body.get("coverage"),
        "report": card.body.get("report"),
        "created": moment(card.created),
    }
    if whole:
        document |= {"body": dict(card.body), "gate": dict(card.gate)}
    return document


def rollout_document(rollout: Rollout, *, whole: bool = False) -> Document:
    document: Document = {
        "id": rollout.id,
        "task": rollout.task_id,
        "adapter": rollout.adapter,
        "state": rollout.state,
        "step": rollout.step,
        "sessions": rollout.sessions,
        "reason": rollout.reason,
        "version": rollout.version,
        "created": moment(rollout.created),
        "entered": moment(rollout.entered),
        "deadline": moment(rollout.deadline),
    }
    if whole:
        document |= {"policy": rollout.policy.to_json(), "evidence": dict(rollout.evidence)}
    return document


def route_document(route: Route) -> Document:
    return {
        "task": route.task_id,
        "champion": route.champion,
        "candidate": route.candidate,
        "rollout": route.rollout_id,
        "stage": route.stage,
        "weight": route.weight,
        "version": route.version,
        "fence": route.fence,
        "updated": moment(route.updated),
    }


def event_document(event: Event) -> Document:
    return {
        "id": event.id,
        "time": moment(event.time),
        "actor": event.actor,
        "what": event.what,
        "subject": event.subject,
        "why": event.why,
        "evidence": event.evidence,
        "previous": event.previous,
        "current": event.current,
    }


def lineage_document(found: Lineage, most: int | None = MAX_SOURCES) -> Document:
    return {
        "kind": "adapter",
        "adapter": adapter_document(found.adapter),
        "dataset": dataset_document(found.dataset),
        **_sources(found.source_objects, most),
        "base_model": found.base_model,
        "base_digest": found.base_digest,
        "scorecards": [scorecard_document(card) for card in found.scorecards],
        "rollouts": [rollout_document(rollout) for rollout in found.rollouts],
    }


def dataset_lineage_document(found: DatasetLineage, most: int | None = MAX_SOURCES) -> Document:
    return {
        "kind": "dataset",
        "dataset": dataset_document(found.dataset),
        **_sources(found.source_objects, most),
        "adapters": [adapter_document(adapter) for adapter in found.adapters],
    }


def object_lineage_document(found: ObjectLineage) -> Document:
    return {
        "kind": "object",
        "object": found.key,
        "state": found.state,
        "ingested": moment(found.ingested),
        "datasets": [dataset_document(dataset) for dataset in found.datasets],
        "adapters": [adapter_document(adapter) for adapter in found.adapters],
    }


def answer_lineage_document(found: AnswerLineage, most: int | None = MAX_SOURCES) -> Document:
    return {
        "kind": "call",
        "call": {
            "id": found.call_id,
            "time": moment(found.time),
            "tenant": found.tenant,
            "task": found.task_id,
            "object": found.object_key,
            "model": found.model,
            "adapter": found.adapter_name,
            "arm": found.arm,
            "rollout": found.rollout_id,
            "route_version": found.route_version,
            "escalation": found.escalation,
        },
        "adapter": lineage_document(found.adapter, most) if found.adapter else None,
        "rollout": rollout_document(found.rollout) if found.rollout else None,
    }


def moment(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _sources(keys: Sequence[str], most: int | None) -> Document:
    return {"source_count": len(keys), "source_objects": list(keys[:most])}
