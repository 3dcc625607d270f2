"""Where a rollout stands, as an artifact in a real Prefect server, with a picture behind it."""

from __future__ import annotations

import asyncio

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.upkeep import _show
from infra.database.open import Database
from infra.settings.model import Settings
from tests.flows.rollout_world import world_of
from tests.prefect_server import PrefectServer


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
def test_a_step_is_an_artifact_with_a_picture(
    prefect_server: PrefectServer, settings: Settings, database: Database
):
    url = prefect_server.variables["PREFECT_API_URL"]
    with world_of(settings, database) as world, temporary_settings({PREFECT_API_URL: url}):
        rollout = world.open()
        _show(world.context, rollout)

        async def read() -> list[str]:
            async with get_client() as client:
                found = await client.read_artifacts()
                return [str(one.data) for one in found if one.key == f"rollout-{rollout.id}"]

        (said,) = asyncio.run(read())
        assert rollout.adapter in said and "is **pending**" in said
        key = f"reports/rollouts/{rollout.id}/picture.html"
        assert f"/{key}?link=" in said
        assert b"<svg" in world.context.store.get(key)
