"""What a key may do by its role, and that one tenant learns nothing of another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.gateway.keys import identify
from serving.gateway.open_paths import OpenPaths
from serving.gateway.problems import GatewayError
from serving.gateway.routes import KeyRoute
from serving.gateway.server import Gateway
from serving.gateway.snapshot_file import SnapshotFile, load_snapshot
from serving.registry.keys import create_key, hash_key
from tests.serving.gateway.conftest import Running, Start, configured
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import add_adapter, add_task, chat, ready, set_route, until

FILE = "/v1/files/secret.jsonl"


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def status(running: Running, method: str, path: str, key: str = "") -> int:
    async with running.http.request(
        method, running.url + path, headers=bearing(key), json={} if method == "POST" else None
    ) as response:
        body = await response.read()
        if response.status in (401, 403):
            assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
            assert key.encode() not in body or not key
        return response.status


@pytest.fixture
def keyed(database: Database) -> dict[str, str]:
    return {
        role: create_key(database, "acme", role, role)  # type: ignore[arg-type]
        for role in ("call", "operate", "admin")
    }


async def test_paths_beyond_the_open_ones_need_an_operator(
    start: Start, teacher: TeacherServer, keyed: dict[str, str]
) -> None:
    async with start(require_key=True) as running:
        await until(lambda: len(running.gateway.table.current.keys) == 3)
        assert await status(running, "GET", FILE) == 401
        assert await status(running, "GET", FILE, keyed["call"]) == 403
        assert await status(running, "GET", FILE, keyed["operate"]) == 200
        assert await status(running, "GET", FILE, keyed["admin"]) == 200
        # 404 is the teacher's: it was asked.
        assert await status(running, "DELETE", FILE, keyed["call"]) == 403
        assert await status(running, "DELETE", FILE, keyed["operate"]) == 404
        assert await status(running, "POST", "/v1/fine_tuning/jobs", keyed["call"]) == 403
        assert await status(running, "POST", "/v1/fine_tuning/jobs", keyed["operate"]) == 404
        assert await status(running, "GET", "/v1/organization/users", keyed["operate"]) == 403
        assert await status(running, "GET", "/v1/organization/users", keyed["admin"]) == 404
        assert await status(running, "GET", "/v1/models/gpt-x", keyed["call"]) == 404
        assert await status(running, "DELETE", "/v1/models/mine", keyed["call"]) == 403
        assert await status(running, "GET", "/v1/chat/completions", keyed["call"]) == 403
        for way in ("/v1/embeddings/../files/x", "/v1/embeddings/%2e%2e/files/x", "/v1//files/x"):
            assert await status(running, "GET", way, keyed["call"]) in (400, 403)


async def test_the_operators_own_key_is_never_open_to_strangers(
    settings: Settings, database: Database, teacher: TeacherServer, engine: EngineServer
) -> None:
    body = configured(settings, teacher.url, engine.url).model_dump()
    body["database"]["url"] = settings.database.url
    body["teacher"]["api_key"] = "sk-operator"
    made = Gateway(Settings.model_validate(body))
    import aiohttp

    async with listening(made.app()) as url, aiohttp.ClientSession() as http:
        running = Running(url, made, http)
        assert await status(running, "GET", FILE) == 401
        assert await status(running, "GET", FILE, "sk-whatever") == 401
        assert (await running.ask({"model": "e", "input": "x"}, path="/v1/embeddings"))[0] == 200


def test_open_paths_take_what_they_say_and_no_more() -> None:
    paths = OpenPaths(["POST /embeddings", "GET /models/*", "POST /audio/*"])
    assert paths.holds("POST", "/embeddings") and paths.holds("POST", "/embeddings/")
    assert paths.holds("GET", "/models/a/b")
    for method, path in (
        ("GET", "/embeddings"),
        ("POST", "/embeddings/x"),
        ("POST", "/embeddingsx"),
        ("GET", "/models"),
        ("GET", "/modelsx/a"),
        ("DELETE", "/models/a"),
        ("post", "/embeddings"),
    ):
        assert not paths.holds(method, path), (method, path)


async def test_figures_can_be_kept_to_operators(start: Start, keyed: dict[str, str]) -> None:
    async with start(guard_metrics=True) as running:
        await until(lambda: len(running.gateway.table.current.keys) == 3)
        assert await status(running, "GET", "/metrics") == 401
        assert await status(running, "GET", "/metrics", keyed["call"]) == 403
        assert await status(running, "GET", "/metrics", keyed["operate"]) == 200
        for key, shown in (("", False), (keyed["call"], False), (keyed["operate"], True)):
            async with running.http.get(f"{running.url}/readyz", headers=bearing(key)) as response:
                assert response.status == 200
                assert ("adapters_ready" in await response.json()) == shown
    async with start() as running:
        assert await status(running, "GET", "/metrics") == 200


def test_an_expired_key_opens_nothing_even_where_none_is_needed() -> None:
    over = KeyRoute("acme", expires=datetime.now(UTC) - timedelta(seconds=1))
    alive = KeyRoute("acme", expires=datetime.now(UTC) + timedelta(hours=1))
    known = {hash_key("old"): over, hash_key("new"): alive}
    for require in (True, False):
        with pytest.raises(GatewayError) as error:
            identify(bearing("old"), known, require)
        assert (error.value.status, error.value.code) == (401, "expired_api_key")
        assert identify(bearing("new"), known, require).tenant == "acme"


def test_a_role_of_a_later_release_counts_as_the_least() -> None:
    caller = identify(bearing("k"), {hash_key("k"): KeyRoute("acme", "owner")}, True)
    assert caller.may("call") and not caller.may("operate")


def test_a_snapshot_of_the_release_before_gives_its_keys_the_least_role(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    path.write_text(
        '{"version": 1, "taken": "2026-01-01T00:00:00+00:00", "tenants": {"h": "acme"}, "tasks": []}'
    )
    snapshot = load_snapshot(path)
    assert snapshot is not None and snapshot.keys == {"h": KeyRoute("acme", "call")}
    SnapshotFile(path).save(snapshot)
    assert load_snapshot(path) == snapshot


async def test_a_tenant_learns_nothing_of_anothers_task_or_adapter(
    start: Start,
    teacher: TeacherServer,
    engine: EngineServer,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    add_task(database, details={"tenant": "acme"}, tag="acme-lights")
    adapter = add_adapter(database, store, tmp_path)
    set_route(database, champion=adapter)
    mine, theirs = (create_key(database, name, "call", "") for name in ("acme", "rival"))
    async with start(require_key=True) as running:
        await ready(running.http, running.url, adapter)
        await until(lambda: len(running.gateway.table.current.keys) == 2)

        async def ask(key: str, **more: Any) -> tuple[int, str | None, dict[str, str]]:
            got, _, headers = await running.ask(chat("on", **more), bearing(key))
            return got, headers.get("x-nightschool-answered-by"), headers

        assert (await ask(mine, metadata={"task": "acme-lights"}))[1] == adapter
        assert teacher.asked == []
        await ask(mine, model=adapter)
        assert teacher.asked[-1]["model"] == "teacher-model"
        nobodys = {"model": "lights-of-nobody@0123456789abcdef"}
        for asked in (
            {},
            {"model": "lights"},
            {"model": "nightschool/lights"},
            {"model": adapter},
            {"model": "../lights"},
            {"model": "/etc/passwd"},
            {"model": "%2e%2e%2flights"},
            {"metadata": {"task": "acme-lights"}},
            {"metadata": {"task": "lights"}},
        ):
            got, by, headers = await ask(theirs, **asked)
            assert (got, by) == (200, "teacher"), asked
            assert "x-nightschool-task" not in headers
            sent = teacher.asked[-1]
            # The name is treated like any other that is nobody's: handed on as it is, but for the
            # prefix that says that it can only be ours.
            named = str(asked.get("model", "big"))
            assert sent["model"] == ("teacher-model" if named.startswith("nightschool/") else named)
        assert (await ask(theirs, **nobodys))[0] == 200
        assert teacher.asked[-1]["model"] == nobodys["model"]
        async with running.http.get(f"{running.url}/v1/models", headers=bearing(theirs)) as got:
            assert "lights" not in await got.text()
        for name in ("lights", "nightschool/lights", "nothing-at-all", adapter):
            assert await status(running, "GET", f"/v1/models/{name}", theirs) in (404, 400)
        assert await status(running, "GET", "/v1/models/lights", mine) == 200

        # Feedback on another tenant's call goes nowhere near it.
        _, body, _ = await running.ask(chat("on"), bearing(mine))
        got, _, _ = await running.ask(
            {"id": body["id"], "score": 0}, bearing(theirs), "/v1/feedback"
        )
        answer = running.gateway.calls.find("rival", body["id"])
        assert answer is None and running.gateway.calls.find("acme", body["id"]) is not None
