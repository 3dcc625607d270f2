"""The flows served in the session's Prefect server, and the hook receiver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.orchestrator import Orchestrator
from flows.stack.processes import Stack
from flows.stack.services import prefect_api_url, services
from infra.database.open import open_database
from infra.settings.model import Settings
from infra.settings.sources import load_settings
from tests.prefect_server import PrefectServer, free_port


@dataclass(frozen=True)
class PrefectWorld:
    settings: Settings
    variables: dict[str, str]
    orchestrator: Orchestrator


@pytest.fixture(scope="session")
def prefect_world(
    prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrefectWorld]:
    """The flows, served in the Prefect server, and the hook receiver, each a real process."""
    folder: Path = tmp_path_factory.mktemp("prefect")
    variables = {
        "NIGHTSCHOOL_STORAGE__URL": str(folder / "objects"),
        "NIGHTSCHOOL_DATABASE__URL": f"sqlite:///{folder}/nightschool.db",
        **prefect_server.settings,
        "NIGHTSCHOOL_HOOKS__PORT": str(free_port()),
        "NIGHTSCHOOL_HOOKS__KEY_FILE": str(folder / "hooks.key"),
        "NIGHTSCHOOL_HOOKS__SECRETS": '{"tests": "whsec_bmlnaHQgc2Nob29s"}',
    }
    with Stack(folder / "log") as stack:
        # Only what is started needs them; other tests of this process are not to see them.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**variables, **prefect_server.variables}.items():
                patch.setenv(name, value)
            settings = load_settings()
            open_database(settings.database).upgrade()
            wanted = {"flows", "hooks"}
            stack.start([s for s in services(settings, base_model=folder) if s.name in wanted])
        yield PrefectWorld(settings, variables, Orchestrator(prefect_api_url(settings)))


@pytest.fixture(scope="session")
def deployed(prefect_world: PrefectWorld) -> None:
    """Waits until the last of the flows is deployed."""
    deadline = time.monotonic() + 240  # busy cores take long over Prefect's imports
    while not prefect_world.orchestrator.has_deployment("takeover"):
        assert time.monotonic() < deadline, "the flows were not deployed"
        time.sleep(0.5)
