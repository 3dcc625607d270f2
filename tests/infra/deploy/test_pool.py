"""prefect.yaml: the same deployments as those that ``nightschool up`` serves."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import yaml
from prefect import Flow
from prefect.events import DeploymentTriggerTypes
from pydantic import TypeAdapter

from flows.serve import deployments
from infra.settings.model import Settings
from tests.infra.deploy.reading import DEPLOY


def pooled() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    assert len({one["name"] for one in found}) == len(found)
    return {one["name"]: one for one in found}


def schedule_of(served: Any) -> dict[str, Any]:
    """A served schedule as prefect.yaml writes it."""
    schedule = served.schedule
    if hasattr(schedule, "cron"):
        return {"cron": schedule.cron, "timezone": schedule.timezone}
    return {"interval": int(schedule.interval.total_seconds())}


def test_the_pool_has_the_deployments_that_up_serves() -> None:
    served = {one.name: one for one in deployments(Settings())}
    found = pooled()
    assert list(found) == list(served)
    for name, one in served.items():
        there = found[name]
        assert there.get("schedules", []) == [schedule_of(each) for each in one.schedules or []], (
            name
        )
        assert there.get("tags", []) == list(one.tags), name
        limit = there.get("concurrency_limit") or {}
        assert limit.get("limit") == one.concurrency_limit, name
        if one.concurrency_options is not None:
            strategy = one.concurrency_options.collision_strategy
            assert limit["collision_strategy"] == strategy.value, name
        assert there.get("parameters", {}) == one.parameters, name
        triggers = TypeAdapter(list[DeploymentTriggerTypes])
        assert triggers.validate_python(there.get("triggers", [])) == list(one.triggers), name
        assert there["work_pool"] == {"name": "nightschool"}, name


def test_the_entrypoints_are_the_flows_by_module() -> None:
    """A path would put flows/ first on the path of modules, and hide packages of the same names."""
    for name, one in pooled().items():
        module, _, function = one["entrypoint"].rpartition(".")
        flow = getattr(import_module(module), function)
        assert isinstance(flow, Flow)
        assert flow.name == name
        assert ":" not in one["entrypoint"]
