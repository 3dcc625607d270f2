"""Schedules that somebody changed in Prefect's UI survive a new start of the flows.

Registering a deployment replaces its schedules and wakes it up. So what was registered last is kept in
a Prefect Variable: a deployment that still has just that follows the new defaults, any other keeps
what it has. Deleting a deployment in the UI is the way back to the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable

KEPT = "nightschool_schedules"

Plain = list[dict[str, Any]]
"""Schedules as JSON, without ids and in an order of their own, so that equal ones compare equal."""


def plain(schedules: Sequence[DeploymentSchedule | DeploymentScheduleCreate]) -> Plain:
    found: Plain = []
    for entry in schedules:
        schedule = entry.schedule
        body: dict[str, Any] = schedule.model_dump(mode="json")
        body["timezone"] = body.get("timezone") or "UTC"
        if isinstance(schedule, IntervalSchedule):
            body["interval"] = schedule.interval.total_seconds()
            body["anchor_date"] = schedule.anchor_date.astimezone(UTC).isoformat()
        found.append({"schedule": body, "active": entry.active, "parameters": entry.parameters})
    return sorted(found, key=repr)


def edited(existing: Plain, last: Plain, default: Plain) -> bool:
    """Whether somebody changed what we registered.

    ``default`` counts as ours too: we may have been killed after registering it and before it was
    kept as the ``last``.
    """
    return existing not in (last, default)


def keep_changes(deployments: Sequence[RunnerDeployment]) -> Mapping[str, Plain]:
    """Give deployments the schedules and the pause that people gave them; the defaults, to remember.

    To be called before they are registered; ``remember`` what is returned afterwards.
    """
    kept: Any = Variable.get(KEPT, {})
    last: dict[str, Plain] = kept if isinstance(kept, dict) else {}
    defaults: dict[str, Plain] = {}
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            default = [_create(entry) for entry in deployment.schedules or []]
            defaults[deployment.name] = plain(default)
            deployment.schedules, deployment.paused = [*default], False
            if deployment.name not in last:
                continue
            try:
                there = client.read_deployment_by_name(deployment.full_name)
            except ObjectNotFound:
                continue
            deployment.paused = there.paused
            now = plain(there.schedules)
            if edited(now, last[deployment.name], defaults[deployment.name]):
                deployment.schedules = [_create(entry) for entry in there.schedules]
    return defaults


def remember(defaults: Mapping[str, Plain]) -> None:
    Variable.set(KEPT, dict(defaults), overwrite=True)


def _create(entry: Any) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=entry.schedule,
        active=True if entry.active is None else entry.active,
        max_scheduled_runs=getattr(entry, "max_scheduled_runs", None),
        parameters=entry.parameters or {},
        slug=entry.slug,
    )
