"""The mirror in MLflow: nothing is lost while it is away, nothing is there twice."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.database.open import Database
from infra.settings.operating import RegistryApi
from serving.registry.mirror.client import MirrorDown, MlflowClient
from serving.registry.mirror.reflection import reflect
from serving.registry.mirror.worker import Mirror, MirrorWorker
from serving.registry.records import Route
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.contracts.servers import free_port
from tests.serving.registry.mirror.stand_in import StandIn
from tests.serving.registry.world import NOW, add_adapter, add_task, digest

BY = {"actor": "test", "why": "because"}
START_SECONDS = 120


@dataclass
class Looking:
    """What the server holds, asked over its own API."""

    uri: str

    def runs(self, task: str) -> list[dict[str, Any]]:
        client = MlflowClient(self.uri)
        experiment = client._get("experiments/get-by-name", experiment_name=f"nightschool.{task}")
        found = client._post(
            "runs/search",
            experiment_ids=[experiment["experiment"]["experiment_id"]],
            filter="tags.`nightschool.task` = '" + task + "'",
            max_results=100,
        )
        return list(found.get("runs", []))

    def aliases(self, task: str) -> dict[str, str]:
        client = MlflowClient(self.uri)
        model = client._get("registered-models/get", name=f"nightschool.{task}")
        return {
            one["alias"]: str(one["version"])
            for one in model["registered_model"].get("aliases", [])
        }

    def version_of(self, task: str, run_id: str) -> list[str]:
        found = MlflowClient(self.uri)._get(
            "model-versions/search",
            filter=f"name = 'nightschool.{task}' AND run_id = '{run_id}'",
            max_results="10",
        )
        return [str(one["version"]) for one in found.get("model_versions", [])]

    def run_of(self, adapter: str) -> list[str]:
        client = MlflowClient(self.uri)
        task = adapter.partition("@")[0]
        experiment = client._get("experiments/get-by-name", experiment_name=f"nightschool.{task}")
        found = client._post(
            "runs/search",
            experiment_ids=[experiment["experiment"]["experiment_id"]],
            filter=f"tags.`nightschool.adapter` = '{adapter}'",
            max_results=100,
        )
        return [run["info"]["run_id"] for run in found.get("runs", [])]


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get("MLFLOW_PYTHON")
    if python is None:
        pytest.skip("no real MLflow: MLFLOW_PYTHON names the Python of an environment with one")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        *(python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    uri = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(params=["stand-in", "real"])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "real":
        yield request.getfixturevalue("real_server")
        return
    server = StandIn()
    yield server.uri
    server.close()


@pytest.fixture
def task(database: Database, request: pytest.FixtureRequest) -> str:
    """Another one for every test: the real server is shared."""
    return add_task(database, f"task-{digest(request.node.name)[:8]}")


def mirror(database: Database, uri: str) -> Mirror:
    return Mirror(database, MlflowClient(uri), uri)


def test_adapters_are_there_once_with_where_they_come_from(
    database: Database, uri: str, task: str
) -> None:
    registry = Registry(database)
    one, two = (add_adapter(registry, task, n) for n in range(2))
    registry.record_scorecard(
        digest=digest(f"fuller {task}"),
        adapter=one.name,
        dataset_digest=one.dataset_digest,
        body={"scores": {"served": 0.875, "base": 0.25}, "coverage": 0.5},
        gate={"verdict": "pass"},
        now=NOW.replace(year=2027),
    )
    first = mirror(database, uri)
    assert first.round().told == 2
    assert first.round().told == 0
    # Another process, which has seen nothing yet, finds all of it told.
    assert mirror(database, uri).round().told == 0
    looking = Looking(uri)
    for adapter in (one, two):
        (run,) = looking.run_of(adapter.name)
        assert len(looking.version_of(task, run)) == 1
    told = reflect(one, registry.scorecards(one.name)[0], None)
    assert told.metrics == {"served": 0.875, "base": 0.25, "coverage": 0.5}
    assert told.tags["nightschool.dataset"] == one.dataset_digest


def test_the_champion_s_alias_goes_where_the_route_goes(
    database: Database, uri: str, task: str
) -> None:
    registry, looking = Registry(database), Looking(uri)
    one, two = (add_adapter(registry, task, n) for n in range(2))
    registry.set_route(task, 0, None, champion=one.name, **BY)
    watching = mirror(database, uri)
    watching.round()

    def version(name: str) -> str:
        (found,) = looking.version_of(task, looking.run_of(name)[0])
        return found

    assert looking.aliases(task) == {"champion": version(one.name)}
    registry.open_rollout(task, two.name, RolloutPolicy(), **BY)
    assert watching.round().told == 1
    assert looking.aliases(task) == {"champion": version(one.name), "candidate": version(two.name)}
    route = registry.route(task)
    registry.set_route(
        task,
        route.version,
        None,
        champion=two.name,
        candidate=None,
        rollout_id=None,
        stage="none",
        weight=0.0,
        **BY,
    )
    assert watching.round().told == 2
    assert looking.aliases(task) == {"champion": version(two.name)}
    registry.set_route(task, route.version + 1, None, champion="teacher", **BY)
    watching.round()
    assert looking.aliases(task) == {}


def test_told_again_from_the_beginning_nothing_is_there_twice(
    database: Database, uri: str, task: str
) -> None:
    registry, looking = Registry(database), Looking(uri)
    adapter = add_adapter(registry, task, 1)
    route = Route(task, champion=adapter.name)
    told = reflect(adapter, registry.scorecards(adapter.name)[0], route)
    for _ in range(3):
        MlflowClient(uri).tell(told)
    (run,) = looking.run_of(adapter.name)
    assert len(looking.version_of(task, run)) == 1
    assert len(looking.aliases(task)) == 1


@pytest.mark.parametrize("after", range(14))
def test_broken_off_at_any_request_the_next_round_makes_it_whole(
    database: Database, after: int
) -> None:
    """The worst kind of failure: the server did it, and its answer was lost."""
    server = StandIn()
    try:
        task = add_task(database, "mail")
        registry = Registry(database)
        adapters = [add_adapter(registry, task, n) for n in range(2)]
        registry.set_route(task, 0, None, champion=adapters[0].name, **BY)
        watching = mirror(database, server.uri)
        server.fail_after = after
        with pytest.raises(MirrorDown):
            watching.round()
        server.fail_after = None
        watching.round()
        assert watching.round().told == 0
        assert sorted(run["name"] for run in server.runs.values()) == sorted(
            adapter.name for adapter in adapters
        )
        model = server.models["nightschool.mail"]
        assert len({version["run_id"] for version in model["versions"]}) == 2
        assert len(model["versions"]) == 2
        assert set(model["aliases"]) == {"champion"}
        for run in server.runs.values():
            assert run["status"] == "FINISHED"
            assert all(len(points) == 1 for points in run["metrics"].values())
    finally:
        server.close()


def test_while_it_is_away_the_registry_goes_on_and_nothing_is_lost(database: Database) -> None:
    task = add_task(database, "mail")
    registry = Registry(database)
    away = f"http://127.0.0.1:{free_port()}"
    watching = mirror(database, away)
    for n in range(3):
        add_adapter(registry, task, n)
        with pytest.raises(MirrorDown):
            watching.round()
    server = StandIn()
    try:
        there = Mirror(database, MlflowClient(server.uri), away)
        assert there.round().told == 3
        assert len(server.runs) == 3
    finally:
        server.close()


def test_one_that_is_refused_does_not_keep_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = add_task(database, "mail")
    registry = Registry(database)
    one, two = (add_adapter(registry, task, n) for n in range(2))
    server = StandIn()
    try:
        MlflowClient(server.uri).tell(reflect(one, None, None))
        run = next(iter(server.runs.values()))
        run["params"]["base_model"] = "somebody wrote here"
        done = mirror(database, server.uri).round()
        assert (done.told, done.refused) == (1, 1)
        assert {run["name"] for run in server.runs.values()} == {one.name, two.name}
    finally:
        server.close()


def test_two_mirrors_at_once_tell_each_adapter_once(each_database: Database) -> None:
    task = add_task(each_database, "mail")
    registry = Registry(each_database)
    for n in range(5):
        add_adapter(registry, task, n)
    server = StandIn()
    try:
        results: list[Any] = []

        def run() -> None:
            results.append(mirror(each_database, server.uri).round())

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sum(result.told for result in results) == 5
        assert len(server.runs) == 5
    finally:
        server.close()


async def test_the_worker_tells_what_changes_and_sends_its_token(
    database: Database, tmp_path: Path
) -> None:
    task = add_task(database, "mail")
    registry = Registry(database)
    server = StandIn()
    settings = RegistryApi.model_validate(
        {"mlflow_uri": server.uri, "mlflow_token": "t0ken", "mirror_seconds": 0.05}
    )
    worker = MirrorWorker(settings, Database(str(database.url)))
    serving = worker.while_it_serves(None)  # type: ignore[arg-type]
    try:
        await anext(serving)
        for n in range(2):
            add_adapter(registry, task, n)
            deadline = time.monotonic() + 30
            while len(server.models.get("nightschool.mail", {"versions": []})["versions"]) <= n:
                assert time.monotonic() < deadline
                time.sleep(0.02)  # noqa: ASYNC251 - the worker is a thread
        assert server.authorization == {"Bearer t0ken"}
    finally:
        await serving.aclose()
        worker._stop.set()
        server.close()
