"""How long after its commit a route change is in what gateways answer.

Two gateway processes, one registry, an engine that answers at once. The route of one task swings
between two adapters that the engine holds, and both gateways are asked without a pause until they
answer by the new one: what is measured is the whole way, from the commit to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import numpy as np

from bench.support.programs import Postgres, Program, gateway, scratch
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.serving import Storage
from serving.registry.registry import Registry
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    chat,
    open_rollout,
    ready,
    set_route,
)

Kind = Literal["sqlite", "postgresql"]
GIVE_UP_SECONDS = 30.0
MOST_REST_SECONDS = 0.5
"""Changes come at any moment of the gateways' rhythm."""
TASK = "lights"


async def measure(changes: int, *, database: Kind, refresh_seconds: float = 0.5) -> dict[str, Any]:
    """Seconds from the commit of a route change to the slower of two gateways' answering by it.

    Args:
        changes: how many are made.
        refresh_seconds: how often the gateways look by themselves.

    Returns:
        ``changes``, ``database``, ``refresh_seconds``, and ``p50``, ``p99``, ``max`` in seconds.

    Raises:
        FileNotFoundError: no PostgreSQL is installed.
        TimeoutError: a gateway never answered by the new route.
    """
    async with _deployment(database, refresh_seconds) as (registry, gateways, names, http):
        found = [
            await _change(registry, gateways, names[number % 2], number % 2, http)
            for number in range(changes)
        ]
    p50, p99 = np.percentile(found, [50, 99])
    return {
        "database": database,
        "changes": changes,
        "refresh_seconds": refresh_seconds,
        "p50": round(float(p50), 4),
        "p99": round(float(p99), 4),
        "max": round(max(found), 4),
    }


async def _change(
    registry: Registry,
    gateways: list[Program],
    expected: str,
    weight: float,
    http: aiohttp.ClientSession,
) -> float:
    await asyncio.sleep(random.uniform(0, MOST_REST_SECONDS))
    committed = asyncio.get_running_loop().create_future()

    def write() -> float:
        version = registry.route(TASK).version
        registry.set_route(TASK, version, None, actor="bench", why="bench", weight=float(weight))
        return time.monotonic()

    async def seen(program: Program) -> float:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while await _answers(http, program) != expected:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{program.name} never answered by the new route")
        return time.monotonic()

    async def commit() -> None:
        committed.set_result(await asyncio.to_thread(write))

    *at, _ = await asyncio.gather(*(seen(program) for program in gateways), commit())
    # An answer may arrive before the commit's own reply does.
    return max(0.0, max(float(moment) for moment in at if moment is not None) - committed.result())


async def _answers(http: aiohttp.ClientSession, program: Program) -> str:
    url = f"{program.url}/v1/chat/completions"
    async with http.post(url, json=chat("on"), headers={"x-session-id": "s"}) as response:
        await response.read()
        return response.headers.get("x-nightschool-answered-by", "")


@asynccontextmanager
async def _deployment(
    kind: Kind, refresh_seconds: float
) -> AsyncIterator[tuple[Registry, list[Program], list[str], aiohttp.ClientSession]]:
    engine, teacher = EngineServer(), TeacherServer()
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(scratch("routes"))
        engine_url = await stack.enter_async_context(listening(engine.app()))
        teacher_url = await stack.enter_async_context(listening(teacher.app()))
        url = f"sqlite:///{folder}/nightschool.db"
        if kind == "postgresql":
            server = Postgres(folder)
            stack.callback(server.kill)
            await asyncio.to_thread(server.start)
            url = server.new_database("registry")
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        store = open_store(Storage(url=str(folder / "objects")))
        add_task(database, TASK)
        names = [add_adapter(database, store, folder, TASK, seed=seed) for seed in (1, 2)]
        open_rollout(database, names[1], task_id=TASK)
        set_route(
            database,
            TASK,
            champion=names[0],
            candidate=names[1],
            rollout_id="rollout-1",
            stage="canary",
            weight=1.0,
        )
        settings = {
            "storage.url": str(folder / "objects"),
            "database.url": url,
            "teacher.url": f"{teacher_url}/v1",
            "engine.url": engine_url,
            "gateway.refresh_seconds": refresh_seconds,
        }
        gateways = [gateway(name, folder, settings, {}) for name in ("first", "second")]
        for program in gateways:
            stack.callback(program.kill)
            program.start(wait=False)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for program in gateways:
            await asyncio.to_thread(program.await_answer)
            await ready(http, program.url, *names)
        yield Registry(database), gateways, names, http
