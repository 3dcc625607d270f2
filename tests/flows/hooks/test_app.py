from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr
from standardwebhooks import Webhook

from flows.hooks.app import HookServer, Refused, parsed_body
from flows.hooks.receipts import Receipts
from flows.orchestrator import Orchestrator
from infra.calls.record import new_id
from infra.database.open import Database, open_database
from infra.objects.store import ObjectStore
from infra.settings.operating import Hooks
from tests.flows.conftest import PrefectWorld
from tests.prefect_server import free_port

SECRET = "whsec_bmlnaHQgc2Nob29s"


def signed(body: bytes, message_id: str, *, secret: str = SECRET, age_seconds: float = 0) -> dict:
    time = datetime.now(UTC) - timedelta(seconds=age_seconds)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(time.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, time, body.decode()),
        "content-type": "application/json",
    }


@pytest.mark.parametrize(
    ("hook", "body", "reason"),
    [
        ("retrain", b"not json", "not JSON"),
        ("retrain", b"[1]", "JSON object"),
        ("retrain", b'{"task": 5}', "id of a task"),
        ("retrain", b'{"tsk": "x"}', "unknown fields: tsk"),
        ("rollback", b"{}", "needs the id of a task"),
    ],
)
def test_a_body_that_is_not_understood_is_refused_with_the_reason(hook, body, reason):
    with pytest.raises(Refused, match=reason):
        parsed_body(hook, body)


@pytest.fixture
def receiver(database: Database, store: ObjectStore) -> HookServer:
    """A receiver whose Prefect server is down."""
    return HookServer(
        Hooks(secrets={"ci": SecretStr(SECRET)}),
        Receipts(database),
        store,
        Orchestrator(f"http://127.0.0.1:{free_port()}/api"),
        "http://prefect.example",
    )


async def test_unsigned_forged_and_stale_messages_are_refused(receiver: HookServer):
    body = b'{"task": "invoices"}'
    async with TestClient(TestServer(receiver.application())) as client:
        for headers in (
            {},
            signed(body, "m1", secret="whsec_b3RoZXI="),
            signed(body, "m1", age_seconds=600),
            signed(b'{"task": "other"}', "m1"),
        ):
            answer = await client.post("/hooks/retrain", data=body, headers=headers)
            assert answer.status == 401
        assert (await client.post("/hooks/nothing", data=body)).status == 404


async def test_with_prefect_down_a_message_is_kept_once(receiver: HookServer, database: Database):
    body = b'{"task": "invoices", "reason": "new prices"}'
    async with TestClient(TestServer(receiver.application())) as client:
        for _ in range(2):
            answer = await client.post("/hooks/retrain", data=body, headers=signed(body, "m1"))
            assert answer.status == 202
            assert (await answer.json())["state"] == "kept"
    kept = Receipts(database).kept()
    assert [(item.message_id, item.body["task"]) for item in kept] == [("m1", "invoices")]


async def test_reports_are_served_and_nothing_else_is(receiver: HookServer, store: ObjectStore):
    store.put("reports/drift/a/drift.html", b"<html>drift</html>")
    store.put("logs/v1/secret.jsonl", b"secret")
    async with TestClient(TestServer(receiver.application())) as client:
        page = await client.get("/reports/drift/a/drift.html")
        assert (page.status, page.content_type) == (200, "text/html")
        for path in (
            "/reports/none.html",
            "/reports/../logs/v1/secret.jsonl",
            "/reports/%2e%2e/logs/v1/secret.jsonl",
            "/logs/v1/secret.jsonl",
        ):
            assert (await client.get(path)).status == 404


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


def test_a_signed_message_starts_one_flow_run_in_a_real_prefect(
    prefect_world: PrefectWorld, deployed: None
):
    message_id = new_id()
    status, first = send(prefect_world, "rollback", {"task": "nothing"}, message_id)
    assert (status, first["state"]) == (202, "started")
    _, again = send(prefect_world, "rollback", {"task": "nothing"}, message_id)
    assert again["flow_run_id"] == first["flow_run_id"]
    receipts = Receipts(open_database(prefect_world.settings.database))
    stored = receipts.find("tests", message_id)
    assert stored is not None
    assert stored.flow_run_id == first["flow_run_id"]
    # The run itself ends in a clear error, for there is no such task.
    assert prefect_world.orchestrator.run(first["flow_run_id"]).id == first["flow_run_id"]
