"""``drift`` and ``tasks drift`` as an operator meets them, on real logs."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.settings.model import Settings
from tests.flows.cli.conftest import invoke as run
from tests.flows.test_watching import GERMAN, World, world  # noqa: F401


@pytest.fixture
def told(world: World, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> World:  # noqa: F811
    """A drifted day that ends now."""
    world.now = utc_now() - timedelta(hours=23)
    world.day(german=0.5)
    for name, value in {
        "STORAGE__URL": settings.storage.url,
        "DATABASE__URL": settings.database.url.get_secret_value(),
        "HOOKS__KEY_FILE": f"{settings.storage.url}.key",
    }.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_{name}", str(value))
    return world


def test_it_says_what_drifted_by_how_much_and_shows_examples(told: World, database: Database):
    found = json.loads(run("drift", told.task, "--json").stdout)
    (look,) = [one for one in found["looks"] if one["against"] == "training"]
    assert "prompt_language" in look["drifted"] and found["asks"] == "on"
    assert look["columns"]["prompt_language"]["distance"] > 0.1
    (finding,) = [one for one in look["findings"] if one["column"] == "prompt_language"]
    assert {one["prompt"] for one in finding["examples"]} <= set(GERMAN)
    run("tasks", "drift", told.task, "off", "--why", "too dear", "--as", "ann")
    assert "drift" in run("audit", "--what", "task.drift", "--json").stdout
    said = run("drift", told.task, "--days", "2").stdout
    assert "against what it learned from" in said and "prompt_language" in said
    assert any(text in said for text in GERMAN) and "report: http" in said
    assert "never told" in said and "retraining after drift: it is turned off" in said
    assert run("tasks", "drift", told.task, "default").stdout.strip().endswith("as set up")


def test_a_task_that_cannot_be_compared_says_why(told: World):
    assert "no task" in run("drift", "nonsense", status=3).stderr.lower()
    few = run("drift", told.task, "--days", "0.0001", status=1).stderr
    assert "too few calls" in few and "--days" in few
    told.context.registry.set_route(
        told.task, 1, None, champion="teacher", actor="ann", why="a holiday"
    )
    assert "answered by the teacher" in run("drift", told.task, status=1).stderr
