from __future__ import annotations

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from flows import orchestrator
from flows.orchestrator import Orchestrator, OrchestratorBusy


class FlakyServer:
    """Answers as Prefect does when its database is locked, a given number of times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.keys: list[str] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/deployments/name/night/night", self._deployment)
        app.router.add_post("/api/deployments/d1/create_flow_run", self._create)
        return app

    async def _deployment(self, _: web.Request) -> web.Response:
        return web.json_response({"id": "d1"})

    async def _create(self, request: web.Request) -> web.Response:
        self.keys.append((await request.json())["idempotency_key"])
        if len(self.keys) <= self.failures:
            return web.json_response({"exception_message": "Service Unavailable"}, status=503)
        return web.json_response({"id": "r1", "name": "n", "state_type": "SCHEDULED"})


async def start(failures: int, monkeypatch: pytest.MonkeyPatch) -> tuple[FlakyServer, str]:
    import asyncio

    monkeypatch.setattr(orchestrator, "RETRY_SECONDS", 0.0)
    flaky = FlakyServer(failures)
    async with TestServer(flaky.application()) as server:
        asked = Orchestrator(str(server.make_url("/api")))
        run = await asyncio.to_thread(asked.start, "night", json.loads("{}"))
    return flaky, run.id


async def test_a_busy_server_is_asked_again_for_the_same_run(monkeypatch):
    flaky, run_id = await start(2, monkeypatch)
    assert run_id == "r1"
    assert len(flaky.keys) == 3
    assert len(set(flaky.keys)) == 1


async def test_a_server_that_stays_busy_is_given_up(monkeypatch):
    with pytest.raises(OrchestratorBusy, match="503"):
        await start(99, monkeypatch)
