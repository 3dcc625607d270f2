"""A command knows of nothing but what its test gives it; how tests call one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from infra.calls.record import utc_now
from infra.database.open import Database
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.prefect_server import free_port
from tests.serving.registry.world import add_adapter, add_task, digest

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Prefect server that other tests of the session have started."""
    for name in [name for name in os.environ if name.startswith(("NIGHTSCHOOL_", "PREFECT_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory without settings but those that keep this test to itself."""
    # Commands change their own process's environment; here it is everybody's.
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTSCHOOL_DATABASE__URL", f"sqlite:///{tmp_path}/ns.db")
    monkeypatch.setenv("NIGHTSCHOOL_STORAGE__URL", str(tmp_path / "objects"))
    # Nothing listens there.
    for name in ("GATEWAY__PORT", "HOOKS__PORT", "PREFECT__PORT", "REGISTRY__PORT"):
        monkeypatch.setenv(f"NIGHTSCHOOL_{name}", str(free_port()))
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE__URL", f"http://127.0.0.1:{free_port()}")
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def invoke(*arguments: str, status: int = 0) -> Result:
    """What a command said. Raises what it did not expect itself."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def run(folder: Path) -> Run:
    return invoke


@pytest.fixture
def empty(folder: Path, sqlite_tables: Path) -> Iterator[Database]:
    shutil.copyfile(sqlite_tables, folder / "ns.db")
    database = Database(f"sqlite:///{folder}/ns.db")
    yield database
    database.close()


@pytest.fixture
def registry(empty: Database) -> Registry:
    """Two tasks; an adapter that was promoted, one on its way, one that failed the gate."""
    registry = Registry(empty)
    for task in ("invoice-fields", "small-talk"):
        add_task(empty, task)
    champion = add_adapter(registry, "invoice-fields", 1)
    registry.set_route(
        "invoice-fields", 0, None, champion=champion.name, actor="ann", why="by hand"
    )
    candidate = add_adapter(registry, "invoice-fields", 2, now=utc_now())
    registry.record_scorecard(
        digest=digest("a fuller card"),
        adapter=candidate.name,
        dataset_digest=candidate.dataset_digest,
        body={"scores": {"base": 0.25, "adapter": 0.875, "served": 1.0}, "coverage": 0.75},
        gate={"verdict": "pass"},
        now=utc_now(),
    )
    registry.open_rollout(
        "invoice-fields", candidate.name, RolloutPolicy(), actor="night", why="the gate said pass"
    )
    add_adapter(registry, "small-talk", 3, verdict="fail")
    return registry


def parsed(result: Result) -> Any:
    return json.loads(result.stdout)


def lines(result: Result) -> list[str]:
    return result.stdout.splitlines()
