"""The receiver over real HTTP: who is let in, what is kept, what is done, exactly once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import update

from flows.hooks.app import HOOKS, HookServer
from flows.hooks.messages import wish
from flows.hooks.openapi import document
from flows.hooks.receipts import Receipts
from flows.hooks.secrets import SenderSecrets
from flows.hooks.senders import Refused
from flows.reporting import report_url
from flows.wiring import Context
from infra.calls.codec import parse_line, read_lines
from infra.calls.record import FeedbackRecord, new_id
from infra.database.open import Database
from infra.database.tables import webhook_receipts
from infra.settings.model import Settings
from infra.settings.operating import HookSender
from infra.signing_keys import signing_keys
from serving.registry.keys import create_key
from tests.flows.hooks.signing import SECRET, context_with, signed
from tests.serving.registry.world import add_task


@pytest.mark.parametrize(
    ("hook", "body", "reason"),
    [
        ("retrain", b"not json", "not JSON"),
        ("retrain", b"[" * 100_000, "not JSON"),
        ("retrain", b"[1]", "JSON object"),
        ("retrain", b'{"task": 5}', "id of a task"),
        ("retrain", b'{"task": "\\u0000"}', "id of a task"),
        ("retrain", b'{"reason": "\\ud83d"}', "reason must be"),
        ("retrain", b'{"tsk": "x"}', "unknown fields: tsk"),
        ("retrain", b'{"parameters": {"gate_override": "mine"}}', "gate_override"),
        ("retrain", b'{"parameters": [1]}', "an object of at most"),
        ("rollback", b"{}", "needs the id of a task"),
        ("rollback", b'{"task": "all"}', "needs the id of a task"),
    ],
)
def test_a_body_that_is_not_understood_is_refused_with_the_reason(hook, body, reason):
    with pytest.raises(Refused, match=reason):
        wish(hook, HookSender(), {}, body, [])


@pytest.fixture
def receiving(settings: Settings, database: Database) -> Iterator[Context]:
    """What a receiver has whose Prefect server is down, and a task."""
    add_task(database, "invoices")
    with context_with(settings) as context:
        yield context


def client_of(context: Context) -> TestClient:
    return TestClient(TestServer(HookServer(context).application()))


async def post(client: TestClient, message_id: str) -> dict[str, Any]:
    answer = await client.post("/hooks/retrain", data=b"{}", headers=signed(b"{}", message_id))
    assert answer.status == 202
    said: dict[str, Any] = await answer.json()
    return said


async def test_unsigned_forged_and_stale_messages_are_refused(receiving: Context):
    body = b'{"task": "invoices"}'
    async with client_of(receiving) as client:
        for headers in (
            {},
            signed(body, "m1", secret="whsec_b3RoZXI="),
            signed(body, "m1", age_seconds=600),
            signed(body, "m1", age_seconds=-600),
            signed(b'{"task": "other"}', "m1"),
            {**signed(body, "m1"), "webhook-id": "m2"},
            {**signed(body, "m1"), "webhook-timestamp": "nan"},
            {**signed(body, "m1"), "webhook-signature": "v1"},
        ):
            answer = await client.post("/hooks/retrain", data=body, headers=headers)
            assert answer.status == 401, headers
        assert (await client.post("/hooks/nothing", data=body)).status == 404
    assert Receipts(receiving.database).kept() == []


async def test_an_oversized_message_and_one_that_is_no_text_are_refused(receiving: Context):
    async with client_of(receiving) as client:
        for body, status in ((b"x" * (65 << 10), 413), (b"\xff\xfe", 401)):
            answer = await client.post("/hooks/retrain", data=body)
            assert (answer.status, answer.content_type) == (status, "application/json")
            said = (await answer.json())["error"]
            assert ("max_body_bytes" in said) == (status == 413), said


async def test_with_prefect_down_a_message_is_kept_once_and_says_so(receiving: Context):
    body = b'{"task": "invoices", "reason": "new prices"}'
    async with client_of(receiving) as client:
        for repeat in (False, True):
            answer = await client.post("/hooks/retrain", data=body, headers=signed(body, "m1"))
            said = await answer.json()
            assert (answer.status, said["state"], said["duplicate"]) == (202, "kept", repeat)
            assert "Prefect does not answer" in said["detail"]
        other = b'{"task": "invoices", "reason": "something else"}'
        for hook, sent in (("retrain", other), ("rollback", body)):
            answer = await client.post(f"/hooks/{hook}", data=sent, headers=signed(sent, "m1"))
            assert answer.status == 409, hook
        answer = await client.post(
            "/hooks/retrain", data=b'{"task": "no"}', headers=signed(b'{"task": "no"}', "m2")
        )
        assert (answer.status, "no" in (await answer.json())["error"]) == (404, True)
    kept = Receipts(receiving.database).kept()
    assert [(item.message_id, item.body["task"]) for item in kept] == [("m1", "invoices")]
    events = [e for e in receiving.registry.events("invoices") if e.what == "retrain.asked"]
    assert [(event.actor, event.why) for event in events] == [("webhook:ci", "new prices")]


async def test_a_prefect_that_takes_the_call_and_says_nothing_is_told_of_too(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flows.hooks.app.THREADS", 2)  # one of them may start runs
    monkeypatch.setattr("flows.hooks.app.START_SECONDS", 3)
    monkeypatch.setattr("flows.orchestrator.REQUEST_SECONDS", 4)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        update = {"api_url": f"http://127.0.0.1:{port}/api"}
        prefect = settings.prefect.model_copy(update=update)
        changed = settings.model_copy(update={"prefect": prefect})
        with context_with(changed) as context:
            async with client_of(context) as client:
                asked = asyncio.create_task(post(client, "m1"))
                connection, _ = await asyncio.to_thread(mute.accept)
                # Behind another that is being started: nothing is known of Prefect yet.
                behind = await post(client, "m2")
                said = await asked
                connection.close()
    assert [answer["state"] for answer in (said, behind)] == ["kept", "kept"]
    assert "Prefect does not answer" in said["detail"]
    assert not behind["detail"]


async def test_what_waits_too_long_is_given_up(receiving: Context):
    receipts = Receipts(receiving.database)
    receipts.take("ci", "old", "rollback", {"task": "invoices", "reason": "x"})
    receipts.take("ci", "new", "rollback", {"task": "invoices", "reason": "x"})
    with receiving.database.begin() as connection:
        connection.execute(
            update(webhook_receipts)
            .where(webhook_receipts.c.message_id == "old")
            .values(received=datetime.now(UTC) - timedelta(days=2))
        )
    HookServer(receiving).carrier.carry_out()
    old, new = receipts.find("ci", "old"), receipts.find("ci", "new")
    assert old is not None and new is not None
    assert (old.state, new.state) == ("failed", "kept") and "send it anew" in old.detail


def test_what_became_of_a_message_stays_and_feedback_is_never_late(database: Database):
    receipts = Receipts(database)
    asked, _ = receipts.take("ci", "a", "rollback", {"task": "invoices"})
    receipts.take("ci", "b", "feedback", {})
    assert receipts.give_up(datetime.now(UTC) + timedelta(days=2), "too late") == 1
    # Another receiver was at it meanwhile.
    receipts.settle([asked], "started", "", "a run")
    after = receipts.find("ci", "a")
    assert after is not None and (after.state, after.flow_run_id) == ("failed", None)
    assert [one.message_id for one in receipts.kept()] == ["b"]


async def test_a_running_receiver_hears_of_new_secrets_and_of_revoked_ones(
    receiving: Context, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flows.hooks.secrets.LIVE_SECONDS", 0)
    stored = SenderSecrets(receiving.database, signing_keys(receiving.settings.hooks))
    async with client_of(receiving) as client:
        await post(client, "m1")
        secret = stored.add("shop", standard=True, actor="ann")
        headers = signed(b"{}", "m2", secret=secret)
        assert (await client.post("/hooks/retrain", data=b"{}", headers=headers)).status == 202
        stored.revoke("shop", stored.list()[0].id, actor="ann", why="it leaked")
        assert (await client.post("/hooks/retrain", data=b"{}", headers=headers)).status == 401


async def test_a_sender_is_slowed_down_and_asks_only_for_what_it_may(settings, database):
    slow = {"requests_per_minute": 3, "hooks": ["objects"]}
    senders = {"ci": slow, "shop": slow}
    secrets = {"ci": SECRET, "shop": "whsec_c29tZWJvZHkgZWxzZQ=="}
    with context_with(settings, senders=senders, secrets=secrets) as context:
        async with client_of(context) as client:
            body = b'{"Event": "s3:TestEvent"}'
            statuses = []
            for n in range(4):
                answer = await client.post(
                    "/hooks/objects", data=body, headers=signed(body, f"m{n}")
                )
                statuses.append(answer.status)
            assert statuses == [202, 202, 202, 429]
            assert 1 <= int(answer.headers["Retry-After"]) <= 20
            others = signed(body, "s", secret=secrets["shop"])
            answer = await client.post("/hooks/objects", data=body, headers=others)
            assert answer.status == 202, "another sender has its own"
            answer = await client.post("/hooks/retrain", data=b"{}", headers=signed(b"{}", "r"))
            assert answer.status == 403
            # A forger does not use up what the sender may.
            assert (await client.post("/hooks/objects", data=body)).status == 401


async def test_too_many_that_wait_are_refused_until_there_is_room(settings, database):
    with context_with(settings, max_kept=1) as context:
        server = HookServer(context)
        async with TestClient(TestServer(server.application())) as client:
            assert (
                await client.post("/hooks/retrain", data=b"{}", headers=signed(b"{}", "a"))
            ).status == 202
            await asyncio.to_thread(server.carrier.carry_out)
            answer = await client.post("/hooks/retrain", data=b"{}", headers=signed(b"{}", "b"))
            assert (answer.status, answer.headers["Retry-After"]) == (503, "30")


async def test_keys_do_as_far_as_their_role_goes(receiving: Context):
    keys = {
        role: create_key(receiving.database, "shop", role, role) for role in ("call", "operate")
    }
    said = json.dumps({"call_id": new_id(), "score": 1})
    async with client_of(receiving) as client:

        async def post(role: str, hook: str, body: str, **headers: str) -> int:
            headers["Authorization"] = f"Bearer {keys.get(role, 'ns_unknown')}"
            return (await client.post(f"/hooks/{hook}", data=body, headers=headers)).status

        assert await post("nobody", "feedback", said) == 401
        assert await post("call", "feedback", said) == 202
        assert await post("call", "retrain", "{}") == 403
        assert await post("operate", "retrain", "{}", **{"Idempotency-Key": "once"}) == 202
        assert await post("operate", "retrain", "{}", **{"Idempotency-Key": "once"}) == 202
        assert await post("operate", "feedback", said) == 202
    assert [r.message_id for r in Receipts(receiving.database).kept("retrain")] == ["once"]


async def test_feedback_reaches_the_log_once_and_without_personal_data(receiving: Context):
    call_id, server = new_id(), HookServer(receiving)
    body = json.dumps(
        {"call_id": call_id, "score": 0.5, "label": "write to ann@example.com"}
    ).encode()
    async with TestClient(TestServer(server.application())) as client:
        for _ in range(2):
            answer = await client.post("/hooks/feedback", data=body, headers=signed(body, "f1"))
            assert answer.status == 202
        for wrong in (
            {"call_id": "x", "score": 1},
            {"call_id": call_id},
            {"call_id": call_id, "score": 2},
        ):
            body = json.dumps(wrong).encode()
            answer = await client.post("/hooks/feedback", data=body, headers=signed(body, new_id()))
            assert answer.status in (400, 404)
        with receiving.database.read() as connection:
            (kept,) = connection.execute(webhook_receipts.select()).all()
        assert "ann@" not in str(kept)
        server.carrier.carry_out()
        # A kill between storing and settling: it is done again, and is the same object.
        with receiving.database.begin() as connection:
            connection.execute(update(webhook_receipts).values(state="kept", body=kept.body))
        server.carrier.carry_out()
    (stored,) = receiving.store.list("logs/")
    with receiving.store.open(stored.key) as stream:
        (found,) = [parse_line(line.content) for line in read_lines(stream)]
    assert isinstance(found, FeedbackRecord)
    assert (found.call_id, found.score, "ann@" in str(found.label)) == (call_id, 0.5, False)
    receipt = Receipts(receiving.database).find("ci", "f1")
    assert receipt is not None and (receipt.state, receipt.detail) == ("done", stored.key)
    assert receipt.body == {}, "the log has it now, and `forget` reaches it there"


async def test_status_is_told_to_the_sender_and_to_operators_only(receiving: Context):
    body = b"{}"
    operate = create_key(receiving.database, "shop", "operate", "")
    call = create_key(receiving.database, "shop", "call", "")
    async with client_of(receiving) as client:
        said = await (
            await client.post("/hooks/retrain", data=body, headers=signed(body, "m 1"))
        ).json()
        url = said["status_url"].removeprefix(receiving.settings.hooks.address)

        async def status(headers: dict[str, str], where: str = url) -> int:
            answer = await client.get(where, headers=headers)
            text = await answer.json()
            assert answer.status != 200 or text["state"] == "kept"
            return answer.status

        assert await status(signed(b"m 1", new_id())) == 200
        assert await status({"Authorization": f"Bearer {operate}"}) == 200
        assert await status({"Authorization": f"Bearer {operate}"}, url.partition("?")[0]) == 200
        assert await status({"Authorization": f"Bearer {call}"}) == 404
        assert await status({}) == 401
        assert await status(signed(b"another", new_id())) == 401
        assert await status(signed(b"m2", new_id()), "/hooks/status/m2") == 404


async def test_reports_open_by_their_link_or_to_an_operators_key(receiving: Context):
    receiving.store.put("reports/drift/a/drift.html", b"<html>drift</html>")
    receiving.store.put("reports/drift/b/drift.html", b"<html>other</html>")
    receiving.store.put("logs/v1/secret.jsonl", b"secret")
    keys = {role: create_key(receiving.database, "shop", role, "") for role in ("call", "admin")}
    address = receiving.settings.hooks.address
    link = report_url(receiving, "reports/drift/a/drift.html").removeprefix(address)
    async with client_of(receiving) as client:
        page = await client.get(link)
        assert (page.status, page.content_type) == (200, "text/html")
        assert page.headers["Content-Security-Policy"].startswith("sandbox")
        for path, key, status in (
            ("/reports/drift/a/drift.html", None, 401),
            ("/reports/drift/a/drift.html", "call", 403),
            ("/reports/drift/a/drift.html", "admin", 200),
            (link[:-1], None, 403),
            (link.replace("/a/", "/b/"), "admin", 403),
            ("/reports/none.html", "admin", 404),
            ("/reports/../logs/v1/secret.jsonl", "admin", 404),
            ("/reports/%2e%2e/logs/v1/secret.jsonl", "admin", 404),
            ("/logs/v1/secret.jsonl", "admin", 404),
        ):
            headers = {"Authorization": f"Bearer {keys[key]}"} if key else {}
            assert (await client.get(path, headers=headers)).status == status, path


async def test_the_document_is_openapi_and_names_what_is_served(receiving: Context):
    found = document()
    OpenAPIV31SpecValidator(found).validate()
    server = HookServer(receiving)
    served = {route.resource.canonical for route in server.application().router.routes()}
    described = set(found["paths"]) - {f"/hooks/{hook}" for hook in HOOKS} | {"/hooks/{hook}"}
    assert served == described and {f"/hooks/{hook}" for hook in HOOKS} <= set(found["paths"])
    async with client_of(receiving) as client:
        assert (await (await client.get("/openapi.json")).json()) == found
        for message, status in ((signed(b"{}", "m1"), "202"), ({}, "401")):
            answer = await client.post("/hooks/retrain", data=b"{}", headers=message)
            assert str(answer.status) == status
            shape = found["paths"]["/hooks/retrain"]["post"]["responses"][status]
            schema = shape["content"]["application/json"]["schema"]
            whole = {**schema, "components": found["components"]}
            Draft202012Validator(whole).validate(await answer.json())
