"""The flows as users meet them: in a real Prefect server."""

from __future__ import annotations

import time

import pytest

from flows.orchestrator import FlowRun, Orchestrator, OrchestratorDown, OrchestratorRefused
from flows.serve import deployments
from tests.flows.conftest import PrefectWorld
from tests.prefect_server import free_port


def ended(orchestrator: Orchestrator, run: FlowRun, seconds: float = 240) -> FlowRun:
    deadline = time.monotonic() + seconds
    while not (now := orchestrator.run(run.id)).ended:
        assert time.monotonic() < deadline, f"{now.name} is still {now.state}"
        time.sleep(0.5)
    return now


def test_every_flow_is_deployed_and_the_night_has_its_schedule(
    prefect_world: PrefectWorld, deployed: None
):
    for deployment in deployments(prefect_world.settings):
        assert prefect_world.orchestrator.has_deployment(deployment.name)
    night = prefect_world.orchestrator._ask("GET", "/deployments/name/night/night")
    schedules = [schedule["schedule"]["cron"] for schedule in night["schedules"]]
    assert schedules == [prefect_world.settings.night.cron]
    described = night["parameter_openapi_schema"]["properties"]
    assert all(field.get("description") for field in described.values())


def test_the_scheduler_makes_runs_of_the_night(prefect_world: PrefectWorld, deployed: None):
    night = prefect_world.orchestrator._ask("GET", "/deployments/name/night/night")
    body = {"deployments": {"id": {"any_": [night["id"]]}}, "limit": 5}
    deadline = time.monotonic() + 120
    while not prefect_world.orchestrator._ask("POST", "/flow_runs/filter", body):
        assert time.monotonic() < deadline, "the schedule never made a run"
        time.sleep(1)


@pytest.fixture(scope="module")
def started(prefect_world: PrefectWorld, deployed: None) -> dict[str, FlowRun]:
    """One run of each, begun together."""
    asked = {
        "night": {"reason": "an empty day", "by_hand": True},
        "housekeeping": {"dry_run": True},
        "rollback": {"task": "nobody", "reason": "a test"},
    }
    return {flow: prefect_world.orchestrator.start(flow, given) for flow, given in asked.items()}


def test_an_empty_day_ends_well(prefect_world: PrefectWorld, started: dict[str, FlowRun]):
    now = ended(prefect_world.orchestrator, started["night"])
    assert (now.state, now.name) == ("COMPLETED", "night: an empty day")
    names = {task["name"] for task in prefect_world.orchestrator.task_runs(now.id)}
    assert {"ingest", "discover", "plan"} <= names


def test_housekeeping_runs_where_there_is_nothing_to_clear(
    prefect_world: PrefectWorld, started: dict[str, FlowRun]
):
    now = ended(prefect_world.orchestrator, started["housekeeping"])
    assert (now.state, now.name) == ("COMPLETED", "clear away")


def test_a_rollback_of_an_unknown_task_fails_and_says_why(
    prefect_world: PrefectWorld, started: dict[str, FlowRun]
):
    now = ended(prefect_world.orchestrator, started["rollback"])
    assert now.state == "FAILED"
    assert "no task 'nobody'" in now.message


def test_no_server_and_no_such_deployment_are_told_apart(prefect_world: PrefectWorld):
    with pytest.raises(OrchestratorDown, match="nightschool up"):
        Orchestrator(f"http://127.0.0.1:{free_port()}/api").start("night", {})
    with pytest.raises(OrchestratorRefused, match="404"):
        prefect_world.orchestrator.start("nothing-of-that-name", {})
