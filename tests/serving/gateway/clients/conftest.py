from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.gateway.http_server import Runner
from serving.gateway.server import Gateway
from serving.registry.keys import create_key
from tests.serving.gateway.clients.teacher import FullTeacher
from tests.serving.gateway.conftest import configured
from tests.serving.gateway.upstreams import EngineServer, listening
from tests.serving.gateway.world import add_adapter, add_task, set_route, until

TASK = "lights"


@dataclass
class Served:
    """A gateway that needs keys, before a teacher that takes every option, with one adapter."""

    url: str
    """Ends in /v1."""
    gateway: Gateway
    teacher: FullTeacher
    key: str
    spent: str
    """A key whose limit is used up."""
    adapter: str


@pytest.fixture
async def served(
    settings: Settings,
    database: Database,
    store: ObjectStore,
    engine: EngineServer,
    tmp_path: Path,
) -> AsyncIterator[Served]:
    add_task(database, TASK, tag=TASK)
    adapter = add_adapter(database, store, tmp_path, TASK)
    set_route(database, TASK, champion=adapter)
    key = create_key(database, "acme", "call", "")
    spent = create_key(database, "acme", "call", "", requests_per_minute=1)
    teacher = FullTeacher()
    async with listening(teacher.app()) as teacher.url:
        made = Gateway(
            configured(settings, teacher.url, engine.url, require_key=True, max_body_bytes=1 << 20)
        )
        async with listening(made.app(), Runner) as url:
            await until(lambda: adapter in made.holdings.ready and made.table.current.keys)
            import aiohttp

            async with aiohttp.ClientSession() as http:
                headers = {"Authorization": f"Bearer {spent}"}
                async with http.get(f"{url}/v1/models", headers=headers) as response:
                    assert response.status == 200
            yield Served(f"{url}/v1", made, teacher, key, spent, adapter)
