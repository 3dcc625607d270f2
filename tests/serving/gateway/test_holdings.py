"""Adapters of routes in the engine: more than it has room for, on several replicas, unfit ones."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.artifacts.folder import read_manifest
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.gateway.server import Gateway
from tests.serving.engines.building import make_adapter
from tests.serving.gateway.conftest import Running, configured
from tests.serving.gateway.test_process import environment, free_port, launch
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    chat,
    open_rollout,
    ready,
    register,
    set_route,
    until,
)
from tests.tiny_model import make_tiny_model

TASKS = ("doors", "lights", "music")


@asynccontextmanager
async def gateway(
    settings: Settings, teacher: TeacherServer, engine: EngineServer, **options: Any
) -> AsyncIterator[Running]:
    """A gateway with these engine settings, that lets adapters go soon."""
    made = configured(settings, teacher.url, engine.url, small_model_timeout_seconds=0.5)
    body = made.model_dump()
    body["database"]["url"] = settings.database.url
    body["engine"] |= {"residence_seconds": 0.01, **options}
    gateway = Gateway(Settings.model_validate(body))
    async with listening(gateway.app()) as url, aiohttp.ClientSession() as http:
        yield Running(url, gateway, http)


@pytest.fixture
def champions(database: Database, store: ObjectStore, tmp_path: Path) -> dict[str, str]:
    """Three tasks, told apart by their tags, with a champion each."""
    names = {}
    for number, task in enumerate(TASKS):
        add_task(database, task, tag=task)
        names[task] = add_adapter(database, store, tmp_path, task, seed=number)
        set_route(database, task, champion=names[task])
    return names


async def by(running: Running, task: str) -> str:
    status, _, headers = await running.ask(chat("on"), {"x-task": task})
    assert status == 200
    return headers["x-nightschool-answered-by"]


async def answered(
    running: Running, task: str, name: str, meanwhile: Collection[str] = ("teacher",)
) -> None:
    """Call until the adapter answers; somebody else does meanwhile."""
    for _ in range(500):
        if (who := await by(running, task)) == name:
            return
        assert who in meanwhile
        await asyncio.sleep(0.02)
    pytest.fail(f"{name} never came")


async def test_a_called_adapter_comes_in_and_the_one_called_longest_ago_goes(
    settings: Settings, champions: dict[str, str], teacher: TeacherServer, engine: EngineServer
) -> None:
    async with gateway(settings, teacher, engine, max_adapters=2) as running:
        await until(lambda: len(engine.loaded) == 2)
        await ready(running.http, running.url, *engine.loaded)
        there = [task for task in TASKS if champions[task] in engine.loaded]
        (cold,) = set(TASKS) - set(there)
        hot, idle = there
        assert await by(running, hot) == champions[hot]
        await answered(running, cold, champions[cold])
        await until(lambda: set(engine.loaded) == {champions[hot], champions[cold]})
        # And back again: nothing is forgotten, and the copy on disk is still there.
        await answered(running, hot, champions[hot])
        await answered(running, idle, champions[idle])
        await until(lambda: set(engine.loaded) == {champions[hot], champions[idle]})


async def test_a_candidate_gets_a_place_whatever_is_called(
    settings: Settings,
    champions: dict[str, str],
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
    teacher: TeacherServer,
    engine: EngineServer,
) -> None:
    async with gateway(settings, teacher, engine, max_adapters=1) as running:
        await until(lambda: len(engine.loaded) == 1)
        candidate = add_adapter(database, store, tmp_path, "lights", seed=9)
        open_rollout(database, candidate)
        set_route(
            database,
            "lights",
            champion=champions["lights"],
            candidate=candidate,
            rollout_id="rollout-1",
            stage="canary",
            weight=1.0,
            version=2,
        )
        # The champion, until the gateway has heard of the new route.
        await answered(running, "lights", candidate, {"teacher", champions["lights"]})
        await until(lambda: set(engine.loaded) == {candidate})
        for task in ("doors", "music"):
            assert await by(running, task) == "teacher"
        assert await by(running, "lights") == candidate


async def test_an_adapter_that_cannot_be_had_takes_no_place(
    settings: Settings,
    champions: dict[str, str],
    store: ObjectStore,
    teacher: TeacherServer,
    engine: EngineServer,
) -> None:
    for info in list(store.list("adapters/doors/")):
        if info.key.endswith(".safetensors"):
            store.put(info.key, store.get(info.key)[:-1])
    async with gateway(settings, teacher, engine, max_adapters=2) as running:
        await until(lambda: set(engine.loaded) == {champions["lights"], champions["music"]})
        assert await by(running, "doors") == "teacher"


async def test_an_adapter_is_let_go_only_when_its_calls_are_done(
    settings: Settings,
    champions: dict[str, str],
    database: Database,
    teacher: TeacherServer,
    engine: EngineServer,
) -> None:
    name = champions["lights"]
    async with gateway(settings, teacher, engine) as running:
        await ready(running.http, running.url, name)
        # Our own calls are counted; that it outlives the grace time is what the count is for.
        replica = running.gateway.engine.replicas[0]
        with replica.call(name):
            set_route(database, "lights", champion="teacher", version=2)
            await until(lambda: name not in running.gateway.holdings.ready)
            assert await by(running, "lights") == "teacher"
            running.gateway.holdings._let_go[name] = float("-inf")
            running.gateway.holdings.recheck()
            tended = engine.listings
            await until(lambda: engine.listings > tended + 1)
            assert name in engine.loaded
        await until(lambda: name not in engine.loaded)


async def test_with_the_store_down_a_restarted_gateway_serves_its_copies(
    settings: Settings,
    champions: dict[str, str],
    store: ObjectStore,
    teacher: TeacherServer,
    engine: EngineServer,
) -> None:
    async with gateway(settings, teacher, engine) as running:
        await ready(running.http, running.url, *champions.values())
    for info in list(store.list("adapters/")):
        store.delete(info.key)
    engine.loaded.clear()
    async with gateway(settings, teacher, engine) as running:
        await ready(running.http, running.url, *champions.values())
        assert await by(running, "lights") == champions["lights"]


async def test_two_replicas_answer_as_one(
    settings: Settings, champions: dict[str, str], teacher: TeacherServer, engine: EngineServer
) -> None:
    other = EngineServer()
    name = champions["lights"]
    async with (
        listening(other.app()) as other.url,
        gateway(settings, teacher, engine, replicas=[other.url]) as running,
    ):
        await until(lambda: set(engine.loaded) == set(other.loaded) == set(champions.values()))
        await ready(running.http, running.url, name)
        # One that comes back empty is filled again, and nobody notices.
        other.loaded.clear()
        assert {await by(running, "lights") for _ in range(6)} == {name}
        await until(lambda: set(other.loaded) == set(champions.values()))
        await until(lambda: all(r.sure for r in running.gateway.engine.replicas))
        other.mode = "full"
        assert {await by(running, "lights") for _ in range(6)} == {name}
        other.mode, engine.mode = "ok", "error"
        assert {await by(running, "lights") for _ in range(6)} == {name}


async def test_what_does_not_fit_vllms_base_never_reaches_vllm(
    settings: Settings,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
    teacher: TeacherServer,
    engine: EngineServer,
) -> None:
    base = await asyncio.to_thread(make_tiny_model, tmp_path / "base")
    name, folder = await asyncio.to_thread(make_adapter, base, tmp_path, task="lights", seed=1)
    manifest = read_manifest(folder)
    location = f"adapters/lights/{manifest.digest}"
    for path in folder.iterdir():
        store.put(f"{location}/{path.name}", path.read_bytes())
    add_task(database, "lights", tag="lights")
    register(database, manifest, location, threshold=None)
    set_route(database, "lights", champion=name)
    # Sound in itself, for a base of other shapes and another fingerprint.
    add_task(database, "doors", tag="doors")
    stranger = add_adapter(database, store, tmp_path, "doors")
    set_route(database, "doors", champion=stranger)
    vllm = {"kind": "vllm", "base_model": str(base)}
    async with gateway(settings, teacher, engine, **vllm) as running:
        await ready(running.http, running.url, name)
        await until(lambda: stranger in running.gateway.holdings._retry_at)
        assert await by(running, "doors") == "teacher"
    assert set(engine.loaded) == {name}
    assert engine.load_requests == [name]


def test_a_gateway_for_vllm_without_the_bases_files_does_not_start(
    settings: Settings, tmp_path: Path
) -> None:
    more = {
        "NIGHTSCHOOL_ENGINE__KIND": "vllm",
        "NIGHTSCHOOL_ENGINE__MODELS": str(tmp_path / "nowhere"),
    }
    nobody = TeacherServer()
    nobody.url = "http://127.0.0.1:9"
    process = launch({**environment(settings, nobody, free_port()), **more})
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 2
    last = said.strip().splitlines()[-1]
    assert last.startswith("gateway: base model smollm2-135m is not at") and "engine.models" in last
    assert "Traceback" not in said
