from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.gateway.http_server import Runner
from serving.gateway.server import Gateway
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import add_adapter, add_task, open_rollout, set_route


@dataclass
class Running:
    """A gateway that serves on a socket."""

    url: str
    gateway: Gateway
    http: aiohttp.ClientSession

    async def ask(
        self, body: Any, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions"
    ) -> tuple[int, Any, dict[str, str]]:
        """POST a body; status, JSON, headers in lower case."""
        raw = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(self.url + path, headers=headers, **raw) as response:
            got = {name.lower(): value for name, value in response.headers.items()}
            return response.status, await response.json(), got


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
async def teacher() -> AsyncIterator[TeacherServer]:
    server = TeacherServer()
    async with listening(server.app()) as server.url:
        yield server


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    server = EngineServer()
    async with listening(server.app()) as server.url:
        yield server


def configured(settings: Settings, teacher_url: str, engine_url: str, **gateway: Any) -> Settings:
    """Settings that point to the test's own servers and do everything soon."""
    body = settings.model_dump()
    body["database"]["url"] = settings.database.url
    body["teacher"] |= {"url": f"{teacher_url}/v1", "model": "teacher-model", "timeout_seconds": 5}
    body["engine"] |= {"url": engine_url}
    body["gateway"] |= {
        "refresh_seconds": 0.05,
        "ship_seconds": 0.05,
        "small_model_timeout_seconds": 2,
        "audit_rate": 0.0,
        **gateway,
    }
    return Settings.model_validate(body)


@pytest.fixture
def start(
    settings: Settings,
    database: Database,
    store: ObjectStore,
    teacher: TeacherServer,
    engine: EngineServer,
) -> Start:
    """``async with start(max_in_flight=2) as running``: a gateway with these gateway settings;
    ``telemetry`` and ``anonymizer`` are other sections."""

    @asynccontextmanager
    async def run(
        telemetry: dict[str, Any] | None = None,
        anonymizer: dict[str, Any] | None = None,
        **gateway: Any,
    ) -> AsyncIterator[Running]:
        made_of = configured(settings, teacher.url, engine.url, **gateway)
        for name, values in (("telemetry", telemetry), ("anonymizer", anonymizer)):
            if values is not None:
                section = type(getattr(made_of, name)).model_validate(values)
                made_of = made_of.model_copy(update={name: section})
        made = Gateway(made_of)
        async with listening(made.app(), Runner) as url, aiohttp.ClientSession() as http:
            yield Running(url, made, http)

    return run


@pytest.fixture
def champion(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    """The lights task is answered by an adapter."""
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name, version=4)
    return name


@pytest.fixture
def candidate(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    """The lights task is answered by the teacher, and an adapter is in canary for all sessions."""
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    open_rollout(database, name)
    set_route(database, candidate=name, rollout_id="rollout-1", stage="canary", weight=1.0)
    return name
