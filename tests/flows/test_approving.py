"""Approval from Prefect's side: a suspended run asks, whoever answers first has answered."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from flows.approving import FLOW, Settling, settle
from flows.orchestrator import REQUEST_SECONDS, Orchestrator, PastRun
from flows.wiring import Context
from infra.calls.record import new_id, utc_now
from infra.database.open import Database, open_database
from infra.database.tables import (
    adapters,
    dataset_sources,
    dataset_versions,
    rollouts,
    routes,
    scorecards,
    tasks,
)
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.registry.records import TEACHER, Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import tend
from serving.rollout.machine import Observation
from serving.rollout.orders import give_order
from serving.rollout.policy import RolloutPolicy
from tests.flows.conftest import PrefectWorld
from tests.prefect_server import eventually
from tests.serving.registry.world import add_adapter, add_task

POLICY = RolloutPolicy(
    shadow_sessions=0, steps=(0.5,), step_sessions=1, approval=True, approval_seconds=3600
)
GOOD = Observation(
    loaded=True, verdict="good", labels=50, canary_sessions=50, step_sessions=50, step_labels=50
)


def test_a_prefect_that_does_not_answer_holds_up_nobody(
    settings: Settings, database: Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        settings = settings.model_copy(
            update={"prefect": settings.prefect.model_copy(update={"api_url": url})}
        )
        context = Context(
            settings, open_store(settings.storage), database, Registry(database), {}, "t:1"
        )
        said: list[str] = []
        approvals = Settling(context, said.append)
        began = time.monotonic()
        approvals.ask(0.05)
        approvals.ask(0.05)
        assert time.monotonic() - began < REQUEST_SECONDS / 2
        assert said == []
    # Now the connection breaks, and the question is over.
    eventually(lambda: said, "nothing was said of it", REQUEST_SECONDS * 3)
    assert len(said) == 1 and "cannot be asked for" in said[0]


@pytest.fixture(scope="module")
def registry(prefect_world: PrefectWorld) -> Iterator[Registry]:
    database = open_database(prefect_world.settings.database)
    yield Registry(database)
    # The other tests' nights share this database, and these tasks have no data behind them.
    with database.begin() as connection:
        for table in (
            routes,
            scorecards,
            rollouts,
            adapters,
            dataset_sources,
            dataset_versions,
            tasks,
        ):
            connection.execute(table.delete())
    database.close()


def see(registry: Registry, rollout: Rollout, seconds: float = 0) -> Rollout:
    now = utc_now() + timedelta(seconds=seconds)
    return tend(registry, rollout.id, lambda _: GOOD, now, "test", ())


def waiting(registry: Registry, policy: RolloutPolicy = POLICY) -> Rollout:
    """A rollout whose promotion waits for a person."""
    task = f"task-{new_id()[-8:].lower()}"
    add_task(registry.database, task)
    adapter = add_adapter(registry, task, 1)
    rollout = registry.open_rollout(task, adapter.name, policy, actor="night", why="trained")
    for _ in range(4):
        if rollout.approval != "asked":
            rollout = see(registry, rollout)
    assert rollout.approval == "asked"
    return rollout


def question(api: Orchestrator, rollout: Rollout) -> PastRun | None:
    found = [run for run in api.going(FLOW) if run.parameters["rollout_id"] == rollout.id]
    assert len(found) <= 1, "one question, one run"
    return found[0] if found else None


@pytest.fixture(scope="module")
def questions(
    prefect_world: PrefectWorld, deployed: None, registry: Registry
) -> dict[str, tuple[Rollout, PastRun]]:
    """A promotion that waits for each test, with its suspended run: asked together, for each is a
    process of its own.
    """
    api = prefect_world.orchestrator
    names = ("yes", "no", "elsewhere", "too late", "second")
    opened = {name: waiting(registry) for name in names}
    settle(api, registry)
    settle(api, registry)

    def suspended(rollout: Rollout) -> PastRun | None:
        run = question(api, rollout)
        return run if run is not None and run.state == "PAUSED" else None

    return {
        name: (
            rollout,
            eventually(lambda one=rollout: suspended(one), f"{name}: no run waits", 300),
        )
        for name, rollout in opened.items()
    }


@pytest.fixture(scope="module")
def answered(
    prefect_world: PrefectWorld, registry: Registry, questions: dict[str, tuple[Rollout, PastRun]]
) -> dict[str, tuple[Rollout, PastRun]]:
    """As ``questions``, with those answered in Prefect that are to be."""
    api = prefect_world.orchestrator
    resume(api, questions["yes"][1], promote=True, why="looked at it")
    resume(api, questions["no"][1], promote=False, why="looked at it")
    rollout, run = questions["second"]
    approve(registry, rollout)
    resume(api, run, promote=False, why="no")
    return questions


def resume(api: Orchestrator, run: PastRun, **answer: object) -> None:
    """As the form in Prefect's UI does it."""
    said = api._ask("POST", f"/flow_runs/{run.id}/resume", {"run_input": answer})
    assert said["status"] == "ACCEPT", said


def until_ended(api: Orchestrator, run: PastRun) -> str:
    eventually(lambda: api.run(run.id).ended, "the question's run did not end")
    return api.run(run.id).state


@pytest.mark.parametrize(
    ("said", "state", "approval"),
    [("yes", "canary", "given"), ("no", "inconclusive", None)],
)
def test_an_answer_in_prefects_form_is_carried_out(
    prefect_world: PrefectWorld,
    registry: Registry,
    answered: dict[str, tuple[Rollout, PastRun]],
    said: str,
    state: str,
    approval: str | None,
) -> None:
    api, (rollout, run) = prefect_world.orchestrator, answered[said]
    assert until_ended(api, run) == "COMPLETED"
    after = registry.rollout(rollout.id)
    assert after.state == state and "looked at it" in after.reason
    if approval is not None:
        assert after.approval == approval
        assert see(registry, rollout).state == "promoted"
    else:
        assert registry.route(rollout.task_id).champion == TEACHER
    settle(api, registry)
    assert question(api, rollout) is None


Elsewhere = Callable[[Registry, Rollout], object]


def approve(registry: Registry, rollout: Rollout) -> object:
    return give_order(registry, rollout.id, "approve", actor="ann", why="by hand")


def too_late(registry: Registry, rollout: Rollout) -> object:
    ended = see(registry, rollout, POLICY.approval_seconds + 60)
    assert ended.state == "inconclusive" and registry.route(rollout.task_id).champion == TEACHER
    return ended


@pytest.mark.parametrize(("name", "elsewhere"), [("elsewhere", approve), ("too late", too_late)])
def test_an_answer_from_elsewhere_or_none_in_time_ends_the_question(
    prefect_world: PrefectWorld,
    registry: Registry,
    questions: dict[str, tuple[Rollout, PastRun]],
    name: str,
    elsewhere: Elsewhere,
) -> None:
    api, (rollout, run) = prefect_world.orchestrator, questions[name]
    elsewhere(registry, rollout)
    before = registry.rollout(rollout.id)
    settle(api, registry)
    assert api.run(run.id).state == "COMPLETED"
    assert "answered elsewhere" in api.run(run.id).message
    assert registry.rollout(rollout.id) == before
    assert question(api, rollout) is None


def test_an_answer_that_comes_second_changes_nothing(
    prefect_world: PrefectWorld,
    registry: Registry,
    answered: dict[str, tuple[Rollout, PastRun]],
) -> None:
    api, (rollout, run) = prefect_world.orchestrator, answered["second"]
    assert until_ended(api, run) == "COMPLETED"
    assert registry.rollout(rollout.id).approval == "given"


def test_a_tasks_own_word_comes_before_the_settings(registry: Registry) -> None:
    task = f"task-{new_id()[-8:].lower()}"
    add_task(registry.database, task)
    adapters = [add_adapter(registry, task, number) for number in (1, 2, 3)]
    auto = replace(POLICY, approval=False, when_open="supersede", cooldown_seconds=0)

    def opened(number: int, policy: RolloutPolicy) -> bool:
        return registry.open_rollout(
            task, adapters[number].name, policy, actor="night", why="trained"
        ).policy.approval

    registry.set_task_approval(task, "approve", actor="ann", why="it pays bills")
    assert opened(0, auto)
    registry.set_task_approval(task, "auto", actor="ann", why="it never failed")
    assert not opened(1, replace(auto, approval=True))
    registry.set_task_approval(task, None, actor="ann", why="as set up")
    assert not opened(2, auto)
    with pytest.raises(ValueError, match="maybe"):
        registry.set_task_approval(task, "maybe", actor="ann", why="")  # type: ignore[arg-type]
    said = [event for event in registry.events(task, 20) if event.what == "task.approval"]
    assert [event.why for event in said] == ["as set up", "it never failed", "it pays bills"]
