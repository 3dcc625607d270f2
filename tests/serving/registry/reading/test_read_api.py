"""The read API over real sockets, on both databases: what it shows, to whom, and when it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer
from openapi_spec_validator import validate

from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord
from infra.database.open import Database
from infra.objects.store import ObjectStore, ObjectStoreError
from infra.settings.operating import RegistryApi
from serving.registry.keys import create_key, list_keys, revoke_key
from serving.registry.reading.app import ReadApi
from serving.registry.reading.openapi import openapi_document
from serving.registry.reading.operations import OPERATIONS
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.contracts.servers import free_port
from tests.serving.registry.world import MINUTE, NOW, add_adapter, add_task, digest


@dataclass
class World:
    client: TestClient
    registry: Registry
    store: ObjectStore
    key: str

    async def get(self, path: str, status: int = 200, **query: str) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with self.client.get(path, params=query, headers=headers) as answer:
            body = await answer.json()
            assert answer.status == status, body
            return body


@pytest.fixture
async def world(each_database: Database, store: ObjectStore) -> AsyncIterator[World]:
    for task in ("mail", "orders"):
        add_task(each_database, task)
    registry = Registry(each_database)
    key = create_key(each_database, "default", "operate", "reader")
    api = ReadApi(RegistryApi(), each_database, lambda: store)
    async with TestClient(TestServer(api.app())) as client:
        yield World(client, registry, store, key)


def fill(registry: Registry) -> dict[str, str]:
    """One of everything; what stands for each path parameter."""
    adapter = add_adapter(registry, "mail", 1)
    rollout = registry.open_rollout(
        "mail", adapter.name, RolloutPolicy(), actor="night", why="passed", now=NOW
    )
    return {
        "task": "mail",
        "adapter": adapter.name,
        "digest": adapter.dataset_digest,
        "rollout": rollout.id,
    }


def schema_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    answer = document["paths"][path]["get"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    return {**schema, "components": document["components"]}


async def test_every_address_answers_as_the_openapi_document_says(world: World) -> None:
    names = fill(world.registry)
    document = await world.get("/openapi.json")
    validate(document)
    assert document == openapi_document()
    card = (await world.get("/v1/scorecards"))["items"][0]["digest"]
    for operation in OPERATIONS:
        own = {**names, "digest": card} if "scorecards" in operation.path else names
        found = await world.get(operation.path.format(**own))
        jsonschema.validate(found, schema_of(document, operation.path))
        item = found["items"][0] if operation.paged else found
        shape = document["components"]["schemas"][operation.schema]
        assert set(item) == set(shape["properties"]), operation.name
    assert {path for path in document["paths"] if path.startswith("/v1/")} == {
        "/v1/lineage",
        *(operation.path for operation in OPERATIONS),
    }


async def test_lineage_of_each_kind_is_as_the_document_says(world: World) -> None:
    names = fill(world.registry)
    call = CallRecord(
        session="s",
        request={},
        response={},
        answered_by=AnsweredBy(model="m", adapter=names["adapter"], rollout=names["rollout"]),
    )
    world.store.create(log_key(call.time, "w", 1), encode_lines([call]))
    schema = schema_of(openapi_document(), "/v1/lineage")
    for of, kind in (
        (names["adapter"], "adapter"),
        (names["digest"], "dataset"),
        ("logs/v1/a", "object"),
        (call.id, "call"),
    ):
        found = await world.get("/v1/lineage", of=of)
        assert found["kind"] == kind
        jsonschema.validate(found, schema)
        assert found == await world.get("/v1/lineage", of=of, kind=kind)
    assert found["adapter"]["source_objects"] == ["logs/v1/a", "logs/v1/b"]
    assert found["rollout"]["id"] == names["rollout"]


async def test_pages_hold_everything_once_although_rows_are_added_meanwhile(world: World) -> None:
    # Many of one moment: the cursor must tell them apart.
    made = {
        add_adapter(world.registry, "mail", n, now=NOW + (n // 5) * MINUTE).name for n in range(23)
    }
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await world.get("/v1/adapters", limit="4", **after)
        assert len(page["items"]) <= 4
        seen += [item["name"] for item in page["items"]]
        add_adapter(world.registry, "mail", 1000 + len(seen), now=NOW + timedelta(days=1))
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert len(seen) == len(set(seen)) == 23
    assert set(seen) == made
    times = [world.registry.adapter(name).created for name in seen]
    assert times == sorted(times, reverse=True)


async def test_lists_are_narrowed_down(world: World) -> None:
    mail, orders = (add_adapter(world.registry, task, 1) for task in ("mail", "orders"))
    world.registry.set_adapter_state(orders.name, "rejected", actor="a", why="b")
    for query, expected in (
        ({"task": "mail"}, [mail.name]),
        ({"state": "rejected"}, [orders.name]),
        ({"dataset": mail.dataset_digest}, [mail.name]),
        ({"task": "mail", "state": "rejected"}, []),
        ({"task": "' OR 1=1 --"}, []),
    ):
        found = await world.get("/v1/adapters", **query)
        assert [item["name"] for item in found["items"]] == expected
    events = (await world.get("/v1/events", what="adapter.rejected"))["items"]
    assert [event["subject"] for event in events] == [orders.name]
    history = (await world.get("/v1/tasks/orders/history"))["items"]
    assert {event["subject"] for event in history} == {orders.name}


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/v1/adapters", {"limit": "0"}, 400),
        ("/v1/adapters", {"limit": "201"}, 400),
        ("/v1/adapters", {"limit": "x"}, 400),
        ("/v1/adapters", {"limit": "²"}, 400),
        ("/v1/adapters", {"after": "bm9uc2Vuc2U"}, 400),
        ("/v1/adapters", {"after": "W251bGwsIG51bGxd"}, 400),  # [null, null]
        ("/v1/events", {"after": "WzFlOTk5XQ"}, 400),  # [1e999]
        ("/v1/events", {"after": "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTld"}, 400),  # beyond 64 bits
        ("/v1/adapters", {"color": "red"}, 400),
        ("/v1/adapters", {"task": "a\0b"}, 400),
        ("/v1/adapters", {"task": "x" * 1001}, 400),
        ("/v1/lineage", {}, 400),
        ("/v1/lineage", {"of": "zzz"}, 404),
        ("/v1/lineage", {"of": "logs/v1/a", "kind": "song"}, 400),
        ("/v1/lineage", {"of": "logs/v1/never"}, 404),
        ("/v1/lineage", {"of": "../../etc/passwd"}, 404),
        ("/v1/tasks/nobody", {}, 404),
        ("/v1/adapters/mail@0", {}, 404),
        ("/v1/datasets/0", {}, 404),
        ("/v1/scorecards/0", {}, 404),
        ("/v1/rollouts/0", {}, 404),
        ("/v1/routes/nobody", {}, 404),
        ("/v1/tasks/a%00b", {}, 400),
        ("/v2", {}, 404),
        ("/openapi.json", {"x": "y"}, 400),
    ],
)
async def test_bad_questions_get_the_right_4xx_and_what_to_do(
    world: World, path: str, query: dict[str, str], status: int
) -> None:
    said = await world.get(path, status, **query)
    jsonschema.validate(said, {**openapi_document()["components"]["schemas"]["Error"]})
    assert "Traceback" not in str(said)


async def test_a_parameter_twice_is_refused(world: World) -> None:
    await world.get("/v1/adapters?task=a&task=b", 400)


async def test_only_get_is_there(world: World) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "HEAD"):
        async with world.client.request(method, "/v1/tasks") as answer:
            assert answer.status == 405
            assert answer.headers["Allow"] == "GET"


async def test_who_may_read(world: World) -> None:
    database = world.registry.database

    async def status(headers: dict[str, str]) -> int:
        async with world.client.get("/v1/tasks", headers=headers) as answer:
            if answer.status == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            return answer.status

    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    assert await status(bearer(create_key(database, "shop", "admin", ""))) == 200
    assert await status(bearer(create_key(database, "shop", "operate", ""))) == 200
    assert await status(bearer(create_key(database, "shop", "call", ""))) == 403
    for headers in ({}, bearer("ns_guess"), bearer("x" * 5000), {"Authorization": world.key}):
        assert await status(headers) == 401
    revoke_key(database, list_keys(database)[0].id)
    assert await status(bearer(world.key)) == 401
    # Whoever looks after the process needs no key.
    for path in ("/healthz", "/readyz", "/openapi.json"):
        async with world.client.get(path) as answer:
            assert answer.status == 200


async def test_where_no_key_is_asked_for_anybody_reads(
    each_database: Database, store: ObjectStore
) -> None:
    api = ReadApi(RegistryApi(require_key=False), each_database, lambda: store)
    async with TestClient(TestServer(api.app())) as client, client.get("/v1/tasks") as answer:
        assert await answer.json() == {"items": [], "next": None}
    assert "security" not in openapi_document(require_key=False)


async def test_a_database_that_hangs_costs_a_clear_503_and_comes_back(
    postgres: Any, store: ObjectStore
) -> None:
    """The server's processes are stopped: sockets stay open, new ones are taken, nothing answers."""
    database = Database(postgres.new_database(), busy_timeout_seconds=1)
    database.upgrade()
    settings = RegistryApi(require_key=False, database_seconds=1, max_in_flight=3)
    async with TestClient(TestServer(ReadApi(settings, database, lambda: store).app())) as client:
        async with client.get("/readyz") as answer:
            assert answer.status == 200
        with database.read() as connection:
            found = connection.exec_driver_sql(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            )
            pids = [row.pid for row in found]
        # And the one that would start new ones.
        pids.insert(0, psutil.Process(pids[0]).ppid())
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            answers = await asyncio.gather(*(client.get("/v1/tasks") for _ in range(6)))
            for answer in answers:
                said = await answer.json()
                assert answer.status == 503, said
                assert answer.headers["Retry-After"] == "5"
                assert said["error"]["code"] == "unavailable"
            # Far below what TCP alone would wait for.
            assert time.monotonic() - began < 30
            async with client.get("/healthz") as answer:
                assert answer.status == 200
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 30
        while True:
            async with client.get("/v1/tasks") as answer:
                if answer.status == 200:
                    break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    database.close()


async def test_a_database_that_is_gone_and_a_store_that_fails_are_503(
    database: Database, store: ObjectStore
) -> None:
    def broken() -> ObjectStore:
        raise ObjectStoreError("secret address")

    gone = Database(f"postgresql://u:hunter2@127.0.0.1:{free_port()}/x", busy_timeout_seconds=1)
    settings = RegistryApi(require_key=False)
    for opened, path in (
        (gone, "/v1/tasks"),
        (gone, "/readyz"),
        (database, "/v1/lineage?of=0199b7a5-3f51-7c2e-9d0c-8a4f5b6c7d8e"),
    ):
        api = ReadApi(settings, opened, broken)
        async with TestClient(TestServer(api.app())) as client, client.get(path) as answer:
            assert answer.status == 503
            assert "hunter2" not in await answer.text()
            assert "secret" not in await answer.text()


async def test_a_data_set_of_a_hundred_thousand_objects_is_paged(world: World) -> None:
    data = digest("large")
    keys = [f"logs/v1/dt=2026-05-01/hh=00/w-{n:010d}.jsonl.zst" for n in range(100_000)]
    world.registry.record_dataset(
        digest=data,
        task_id="mail",
        location=f"datasets/mail/{data}",
        manifest={"parents": {"log_objects": keys}, "counts": {"train": 1}},
    )
    page = await world.get(f"/v1/datasets/{data}/objects", limit="200")
    assert [item["object"] for item in page["items"]] == keys[:200]
    second = await world.get(f"/v1/datasets/{data}/objects", limit="200", after=page["next"])
    assert [item["object"] for item in second["items"]] == keys[200:400]
    whole = await world.get(f"/v1/datasets/{data}")
    assert whole["manifest"] == {"counts": {"train": 1}}
    traced = await world.get("/v1/lineage", of=data)
    assert (traced["source_count"], len(traced["source_objects"])) == (100_000, 1000)
    found = await world.get("/v1/lineage", of=keys[54_321])
    assert [one["digest"] for one in found["datasets"]] == [data]


def test_as_a_process_it_serves_and_ends_when_told(database: Database, tmp_path: Path) -> None:
    key = create_key(database, "default", "admin", "")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.registry.reading"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[4]),
            "NIGHTSCHOOL_DATABASE__URL": str(database.url),
            "NIGHTSCHOOL_STORAGE__URL": str(tmp_path / "objects"),
            "NIGHTSCHOOL_REGISTRY__PORT": str(port),
        },
        cwd=tmp_path,
    )
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/tasks", headers={"Authorization": f"Bearer {key}"}
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    assert json.load(answer) == {"items": [], "next": None}
                    break
            except urllib.error.URLError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
