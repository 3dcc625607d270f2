"""The stack's own services as they are declared: each starts from its line and says that it is ready."""

from __future__ import annotations

import json
import urllib.request
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import pytest

from flows.stack.processes import Stack, answers
from flows.stack.services import addresses, prefect_environment, prefect_ui_url, services
from infra.database.open import open_database
from infra.settings.model import Settings
from infra.settings.sources import load_settings
from serving.registry.keys import create_key
from tests.prefect_server import free_port


def test_the_registry_is_part_of_the_stack_and_answers_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTSCHOOL_DATABASE__URL", f"sqlite:///{tmp_path}/ns.db")
    monkeypatch.setenv("NIGHTSCHOOL_STORAGE__URL", str(tmp_path / "objects"))
    monkeypatch.setenv("NIGHTSCHOOL_REGISTRY__PORT", str(free_port()))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    settings = load_settings()
    database = open_database(settings.database)
    database.upgrade()
    (service,) = (one for one in services(settings, base_model=tmp_path) if one.name == "registry")
    assert addresses(settings)["registry"] == service.ready_url
    with Stack(tmp_path / "log") as stack:
        stack.start([service])
        assert service.ready_url and answers(service.ready_url)
        request = urllib.request.Request(
            service.ready_url.replace("healthz", "v1/tasks"),
            headers={"Authorization": f"Bearer {create_key(database, 'a', 'operate', '')}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer) == {"items": [], "next": None}
    assert not answers(service.ready_url)
    database.close()


def test_links_to_prefect_lead_to_its_public_address_where_there_is_one():
    def shown(**prefect: str) -> str:
        return prefect_ui_url(Settings.model_validate({"prefect": prefect}))

    inner = "http://prefect-server:4200/api"
    public = Settings.model_validate({"prefect": {"public_url": "https://prefect.example.com"}})
    asked = prefect_environment(public)["PREFECT_SERVER_UI_API_URL"]
    assert asked == "https://prefect.example.com/api"
    assert shown(api_url=inner) == "http://prefect-server:4200"
    assert shown(api_url=inner, public_url="https://prefect.example.com/") == (
        "https://prefect.example.com"
    )


def test_every_replica_of_the_engine_is_asked_whether_it_is_well():
    replicas = '["http://10.0.0.2:8302", "http://10.0.0.3:8302", "http://127.0.0.1:8302"]'
    found = addresses(load_settings(None, {"NIGHTSCHOOL_ENGINE__REPLICAS": replicas}))
    assert {name: url for name, url in found.items() if name.startswith("engine")} == {
        "engine": "http://127.0.0.1:8302/health",
        "engine 2": "http://10.0.0.2:8302/health",
        "engine 3": "http://10.0.0.3:8302/health",
    }


async def test_a_prefect_server_that_is_started_again_knows_who_holds_a_place(settings, tmp_path):
    """Else it ends the runs that hold one, a night in the middle of it among them."""
    module = import_module(
        prefect_environment(settings)["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    )
    an_hour = timedelta(hours=1)
    lease = await module.ConcurrencyLeaseStorage(tmp_path).create_lease([uuid4()], an_hour)
    assert await module.ConcurrencyLeaseStorage(tmp_path).renew_lease(lease.id, an_hour) is True
