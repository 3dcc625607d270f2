"""What a person reads when the storage key was taken away: before the night, and in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.annotations import quote

from flows.cli.watch_over import _night
from flows.night import _fact, judge_task, release_task, train_task
from flows.planning import RunFact, told_of
from infra.calls.record import utc_now
from infra.database.open import Database
from serving.registry.registry import Registry
from tests.contracts.guarded_s3 import GuardedS3, StorageKey
from tests.flows.cli.conftest import Run
from tests.prefect_server import PrefectServer
from tests.serving.registry.world import NOW, add_task
from tests.tiny_model import make_tiny_model
from trainers.executors.local import LocalExecutor
from trainers.plan import Plan, PlannedRun


@pytest.fixture
def key(
    guarded_s3: GuardedS3,
    folder: Path,
    prefect_server: PrefectServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StorageKey]:
    """The key that the settings have."""
    made = guarded_s3.new_key()
    settings = {**made.environment, **prefect_server.settings, **prefect_server.variables}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # Of a process that has read Prefect's variables before.
    with temporary_settings({PREFECT_API_URL: prefect_server.variables["PREFECT_API_URL"]}):
        yield made


def test_revoked_before_the_night(run: Run, empty: Database, key: StorageKey) -> None:
    key.revoke()
    said = run("night", status=1).stderr.strip().splitlines()[-1]
    assert said.startswith("nightschool: nothing is trained (storage_refused): the bucket")
    assert "InvalidAccessKeyId" in said and "check [storage] credentials" in said


def test_revoked_between_plan_and_training(
    empty: Database, key: StorageKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE__BASE_MODEL", str(make_tiny_model(tmp_path / "base")))
    monkeypatch.setenv("NIGHTSCHOOL_TRAINING__RUNS", str(tmp_path / "runs"))
    add_task(empty, "lights")
    Registry(empty).record_dataset(
        digest="d" * 64,
        task_id="lights",
        location=f"datasets/lights/{'d' * 64}",
        manifest={},
        now=NOW,
    )
    planned = PlannedRun("lights", "d" * 64, 10, 60.0, 0.0, 1.0, "why")
    plan = Plan((planned,), (), utc_now() + timedelta(hours=1), 60.0)
    executor = LocalExecutor()

    @flow
    def rest_of_the_night() -> RunFact:
        steps: list[Any] = [train_task.submit(planned, plan, quote(executor), False)]
        steps.append(judge_task.submit(steps[0]))
        steps.append(release_task.submit(steps[0], steps[1], None, False))
        return _fact(planned, *steps)

    key.revoke()
    fact = rest_of_the_night()
    executor.close()
    assert (fact.state, fact.actual_seconds) == ("storage_refused", None)
    assert fact.why.startswith("training lights ended failed (storage_refused): ObjectRefused: ")
    told = told_of([fact])
    assert "not brought to an end: lights (storage_refused: training lights" in told
    assert not list((tmp_path / "runs").glob("*")), "no run was begun"
    # The morning's `nightschool status` says so too.
    last = {"state": "FAILED", "name": "night", "started": f"{NOW}", "ended": None, "told": told}
    assert told in _night(last)
    assert told not in _night({**last, "state": "COMPLETED"})
