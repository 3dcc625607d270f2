"""Messages that ask for a flow run of a real Prefect, also when it is away: each runs once."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import update

from flows.hooks.app import HookServer
from flows.hooks.receipts import Receipts
from infra.calls.record import new_id
from infra.database.open import Database, open_database
from infra.database.tables import webhook_receipts
from infra.settings.model import Settings
from tests.flows.conftest import PrefectWorld
from tests.flows.hooks.signing import context_with, signed
from tests.prefect_server import eventually, free_port
from tests.serving.registry.world import add_task


def send(world: PrefectWorld, hook: str, value: dict[str, Any], message_id: str) -> tuple[int, Any]:
    body = json.dumps(value).encode()
    hooks = world.settings.hooks
    request = urllib.request.Request(
        f"http://{hooks.host}:{hooks.port}/hooks/{hook}",
        data=body,
        headers=signed(body, message_id),
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def known_task(world: PrefectWorld) -> str:
    """A task to which nothing happens: it has nobody to roll back from."""
    database = open_database(world.settings.database)
    task = f"task-{new_id()[-8:]}"
    add_task(database, task)
    database.close()
    return task


def test_a_signed_message_starts_one_flow_run_in_a_real_prefect(
    prefect_world: PrefectWorld, deployed: None
):
    message_id, task = new_id(), known_task(prefect_world)
    status, first = send(prefect_world, "rollback", {"task": task}, message_id)
    assert (status, first["state"]) == (202, "started")
    _, again = send(prefect_world, "rollback", {"task": task}, message_id)
    assert again["flow_run_id"] == first["flow_run_id"]
    receipts = Receipts(open_database(prefect_world.settings.database))
    stored = receipts.find("tests", message_id)
    assert stored is not None
    assert stored.flow_run_id == first["flow_run_id"]
    # The run itself ends in a clear error, for there is nothing to roll back.
    assert prefect_world.orchestrator.run(first["flow_run_id"]).id == first["flow_run_id"]


def test_parameters_that_the_flow_does_not_take_fail_at_once(
    prefect_world: PrefectWorld, deployed: None
):
    message_id, task = new_id(), known_task(prefect_world)
    wrong = {"task": task, "parameters": {"within_hours": "long"}}
    status, said = send(prefect_world, "retrain", wrong, message_id)
    assert (status, said["state"]) == (422, "failed")
    assert "within_hours" in said["detail"]


@contextmanager
def reachable(port: int, target: str) -> Iterator[None]:
    """The session's Prefect server answers at that port too, until the end of the block."""
    argv = [sys.executable, "-m", "bench.support.relay", str(port), target]
    relay = subprocess.Popen(argv)
    try:
        yield
    finally:
        relay.kill()
        relay.wait()


def carried(server: HookServer, receipts: Receipts) -> bool:
    """Whether a look left nothing behind."""
    server.carrier.carry_out()
    return not receipts.kept()


def test_prefect_is_away_and_comes_back_and_each_message_runs_once(
    prefect_world: PrefectWorld, deployed: None, settings: Settings, database: Database
):
    add_task(database, "invoices")
    api = prefect_world.orchestrator._api
    target = api.removesuffix("/api").rpartition(":")[2]
    own = free_port()
    changed = settings.model_copy(
        update={
            "prefect": settings.prefect.model_copy(
                update={"api_url": f"http://127.0.0.1:{own}/api"}
            )
        }
    )
    with context_with(changed) as context:
        server, receipts = HookServer(context), Receipts(context.database)
        first, second = new_id(), new_id()
        # Two senders may use the same id.
        sent = [("ci", first), ("ci", second), ("shop", first)]
        for sender, message_id in sent:
            receipts.take(sender, message_id, "rollback", {"task": "invoices", "reason": "drill"})
        server.carrier.carry_out()
        assert server.carrier.prefect_is_down and len(receipts.kept()) == 3
        with reachable(own, target):
            eventually(lambda: carried(server, receipts), "kept messages were not started", 60, 0.2)
            found = [receipts.find(*one) for one in sent]
            runs = {one.flow_run_id for one in found if one is not None}
            assert len(runs) == 3 and None not in runs
            # A receiver that was killed before it could note the run asks again: the same run.
            with context.database.begin() as connection:
                connection.execute(update(webhook_receipts).values(state="kept", flow_run_id=None))
            server.carrier.carry_out()
        again = [receipts.find(*one) for one in sent]
        assert {one.flow_run_id for one in again if one is not None} == runs
        assert not server.carrier.prefect_is_down


def test_new_objects_start_one_ingest(
    prefect_world: PrefectWorld, deployed: None, settings: Settings, database: Database
):
    api = prefect_world.settings.prefect
    changed = settings.model_copy(update={"prefect": api})
    with context_with(changed, objects_seconds=0) as context:
        receipts = Receipts(context.database)
        for n in range(5):
            receipts.take("ci", f"{new_id()}-{n}", "objects", {"objects": 1})
        server = HookServer(context)
        ids = [receipt.message_id for receipt in receipts.kept()]
        eventually(lambda: carried(server, receipts), "the ingest was not started", 90, 0.2)
        runs = {one.flow_run_id for one in (receipts.find("ci", given) for given in ids) if one}
        assert len(runs) == 1 and None not in runs
