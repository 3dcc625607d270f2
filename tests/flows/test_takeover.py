"""A crashed night is done again with its parameters, so often and no more; in a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from flows.holding import hold
from flows.orchestrator import FlowRun, Orchestrator, OrchestratorRefused, PastRun
from flows.takeover import MOST, PREFIX, successor, take_over
from infra.calls.record import new_id, utc_now
from infra.database.open import open_database
from tests.flows.conftest import PrefectWorld
from tests.prefect_server import PrefectServer, eventually, process_of

DAY = {"by_hand": True, "within_hours": 0.5}


def nights(orchestrator: Orchestrator, reason: str) -> list[dict[str, Any]]:
    body = {"deployments": {"name": {"any_": ["night"]}}, "limit": 200}
    found = orchestrator._ask("POST", "/flow_runs/filter", body)
    return [one for one in found if one["parameters"].get("reason") == reason]


def run(key: str = "", run_id: str = "abc") -> PastRun:
    return PastRun(run_id, "night: x", "night", "CRASHED", {}, key)


def test_a_run_is_taken_over_so_often_and_no_more() -> None:
    key, keys = successor(run()), []
    while key is not None:
        keys.append(key)
        assert len(keys) <= MOST
        key = successor(run(key, run_id=f"run {len(keys)}"))
    assert keys == [f"{PREFIX}:{number}:abc" for number in range(1, MOST + 1)]
    assert successor(run("sender:17")) == f"{PREFIX}:1:abc", "a webhook's key counts nothing"


class Refusing(Orchestrator):
    """Prefect knows no parameters of the first run any more."""

    def crashed(self, flows: Sequence[str], since: datetime) -> list[PastRun]:
        return [run(run_id="first"), run(run_id="second")]

    def start(
        self, flow: str, parameters: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> FlowRun:
        if idempotency_key == f"{PREFIX}:1:first":
            raise OrchestratorRefused("no parameter 'old'", 409)
        return FlowRun("again", "night: again", "SCHEDULED", "")


def test_one_that_cannot_be_started_keeps_no_other_back() -> None:
    said: list[str] = []
    assert take_over(Refusing("http://nowhere/api"), utc_now(), said.append) == ["again"]
    assert any("cannot be started again: no parameter 'old'" in line for line in said)


def test_a_night_whose_process_is_killed_is_done_again_by_the_server_alone(
    prefect_world: PrefectWorld, deployed: None
) -> None:
    api, reason = prefect_world.orchestrator, f"crash {new_id()[-6:]}"
    database = open_database(prefect_world.settings.database)
    # Another night holds the lease, so that this one waits while it is killed.
    with hold(database, "night", "a test"):
        first = api.start("night", {"reason": reason, **DAY})
        eventually(lambda: api.run(first.id).state == "RUNNING", "it did not wait for its turn")
        eventually(lambda: process_of(first.id), "it has no process").kill()
        eventually(lambda: len(nights(api, reason)) == 2, "nobody took it over")
    (second,) = [one for one in nights(api, reason) if one["id"] != first.id]
    assert second["idempotency_key"] == f"{PREFIX}:1:{first.id}"
    assert {name: second["parameters"][name] for name in DAY} == DAY
    # Two more who see the same crash start nothing more.
    for _ in range(2):
        take_over(api, utc_now())
    # What crashed long ago is left alone.
    assert take_over(api, utc_now() + timedelta(days=1)) == []
    assert len(nights(api, reason)) == 2
    ended = eventually(lambda: _ended(api, second["id"]), "the second did not end")
    assert ended.state == "COMPLETED", ended.message
    database.close()


def test_a_retraining_asked_for_while_a_night_runs_waits_for_it(
    prefect_world: PrefectWorld, deployed: None
) -> None:
    api = prefect_world.orchestrator
    database = open_database(prefect_world.settings.database)
    with hold(database, "night", "a night"):
        first = api.start("retrain", {"reason": "first", "within_hours": 0.5})
        second = api.start("retrain", {"reason": "second", "within_hours": 0.5})
        eventually(lambda: "RUNNING" in (api.run(first.id).state, api.run(second.id).state), "none")
        eventually(
            lambda: "SCHEDULED" in (api.run(first.id).state, api.run(second.id).state),
            "only one process waits; the other stays in Prefect's queue",
        )
        assert not api.run(first.id).ended and not api.run(second.id).ended
    for one in (first, second):
        ended = eventually(lambda one=one: _ended(api, one.id), "it never had its turn", 240)
        assert ended.state == "COMPLETED", ended.message
    database.close()


AWAY = """
import flows.night
from trainers.executors.protocol import ExecutorAway

tries = []


def ingest(*_):
    tries.append(1)
    raise ExecutorAway("no Ray at ray-head:1: start it, or check training.ray_address")


flows.night.ingest_logs = ingest
ended = flows.night.night(by_hand=True, return_state=True)
print(ended.type.name, len(tries), ended.message)
"""


def test_a_night_whose_machines_are_not_there_fails_at_once_and_is_nobodys_to_take_over(
    prefect_server: PrefectServer, prefect_world: PrefectWorld
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AWAY],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **prefect_world.variables, **prefect_server.variables},
    )
    # It has waited already: neither its step nor another run waits as long again.
    assert done.stdout.startswith("FAILED 1 "), done.stdout + done.stderr[-3000:]
    assert "check training.ray_address" in done.stdout


def _ended(api: Orchestrator, run_id: str) -> Any:
    now = api.run(run_id)
    return now if now.ended else None
