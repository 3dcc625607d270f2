"""A night that is killed (-9) in every stage and run again ends like one that nobody disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.stack.processes import Stack
from flows.stack.services import services
from infra.settings.sources import load_settings
from tests.journeys.driver import OVERRIDE, STAGES
from tests.journeys.world import CALLS, STEPS, World, make_world, registry_state
from tests.prefect_server import PrefectServer, free_port
from tests.tiny_model import make_tiny_model
from tests.tiny_run import alive, kill, wait_until
from trainers.run_folder import read_tail

BEFORE_TRAINING = ("ingest", "discover", "freeze")
WITHOUT_MACHINES = {"machines": "CrashedRun", "no machines": "ExecutorAway: nobody answers"}
AFTER_TRAINING = ("publish", "register", "scorecard", "open", "opened")


@pytest.fixture(scope="module")
def variables(
    prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What both worlds share: a Prefect server, and an engine process on the tiny model."""
    folder: Path = tmp_path_factory.mktemp("engine")
    shared = {
        **prefect_server.settings,
        **prefect_server.variables,
        "NIGHTSCHOOL_ENGINE__URL": f"http://127.0.0.1:{free_port()}",
        "NIGHTSCHOOL_ENGINE__BASE_MODEL": str(make_tiny_model(folder / "base")),
        "NIGHTSCHOOL_ENGINE__MAX_ANSWER_TOKENS": "24",
        # Answers made together differ in their last bits by who is beside them, and so would digests.
        "NIGHTSCHOOL_ENGINE__BATCH_SIZE": "1",
    }
    settings = load_settings(environ=shared)
    wanted = services(settings, base_model=Path(settings.engine.base_model))
    with Stack(folder / "log") as stack:
        stack.start([service for service in wanted if service.name == "engine"])
        yield shared


@pytest.fixture(scope="module")
def undisturbed(
    variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one night leaves behind that ran to its end at once."""
    world = make_world(tmp_path_factory.mktemp("undisturbed") / "world", variables)
    assert world.night_to_end() == 0, world.last_words()
    assert "in state Failed" not in world.log.read_text(), "no step failed unseen"
    return registry_state(world)


def test_an_undisturbed_night_opens_one_rollout(undisturbed: dict[str, Any]) -> None:
    """What the comparison below rests on: the night did something of every kind."""
    assert undisturbed["ingested"]["objects"] == 3
    assert undisturbed["ingested"]["calls"] == CALLS + 24
    assert undisturbed["ingested"]["quarantined"] == 1
    assert [(task[2], task[4]) for task in undisturbed["tasks"]] == [("candidate", CALLS)]
    ((adapter, dataset, _, _, threshold, state),) = undisturbed["adapters"]
    assert [digest for _, digest, _, _ in undisturbed["datasets"]] == [dataset]
    assert (threshold, state) == (None, "registered")
    ((judged, _, verdict, numbers),) = undisturbed["scorecards"]
    assert judged == adapter
    assert verdict != "pass"
    assert numbers["errors"] == 0
    task = adapter.partition("@")[0]
    assert undisturbed["rollouts"] == [(task, adapter, "pending", 0, "teacher", OVERRIDE)]
    assert [row[:4] for row in undisturbed["routes"]] == [(task, "teacher", adapter, "none")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_every_stage_and_run_again_it_ends_the_same(
    undisturbed: dict[str, Any], variables: dict[str, str], tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world", variables)
    for stage in BEFORE_TRAINING:
        assert world.night_to_end(stage) == -signal.SIGKILL, (stage, world.last_words())

    # Without its machines a night, and the retraining that it is part of, crashes and is taken over;
    # where they were not there at all it has waited for them, and fails.
    for stage, told in WITHOUT_MACHINES.items():
        assert world.night_to_end(stage) == 1
        assert told in world.last_words(), world.last_words()
    assert "retrain all tasks: journey" in world.log.read_text()

    # In training: twice the night, under either executor, then the training process alone.
    for executor in ("local", "ray"):
        kill_night_in_training(world, executor)
    kill_worker_and_night_in_judging(world)

    for stage in AFTER_TRAINING:
        assert world.night_to_end(stage) == -signal.SIGKILL, (stage, world.last_words())
    assert {*BEFORE_TRAINING, *WITHOUT_MACHINES, "judge", *AFTER_TRAINING} == set(STAGES)
    assert world.night_to_end() == 0, world.last_words()
    ended = registry_state(world)
    for part in undisturbed:
        assert ended[part] == undisturbed[part], part

    # Nothing was trained twice: every step was done once, but those after the last checkpoint.
    run = world.run()
    assert run is not None
    steps = [event["step"] for event in read_tail(run.events_file) if event.get("tokens")]
    assert steps.count(1) == 1
    assert max(steps) == STEPS

    # Once more, as on the next night without new calls: there is nothing to do.
    assert world.night_to_end() == 0, world.last_words()
    assert registry_state(world) == ended


def kill_night_in_training(world: World, executor: str) -> None:
    """Kill the night when its training has written a checkpoint; the training goes with it."""
    before = world.sealed()
    with world.night(NIGHTSCHOOL_TRAINING__EXECUTOR=executor) as night:
        wait_until(lambda: world.sealed() > before or night.poll() is not None)
        assert night.poll() is None, world.last_words()
        run = world.run()
        assert run is not None
        worker = int(run.attempts()[-1]["pid"])
        # Held where it is: tiny steps are faster than Ray's noticing that the night has died.
        os.kill(worker, signal.SIGSTOP)
        supervisor = parent(worker)
        kill(night.pid)
        assert night.wait(60) == -signal.SIGKILL
    wait_until(lambda: parent(worker) != supervisor, 60)
    # Its supervisor's end has asked it to end too, which it hears when it goes on.
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not alive(worker), 60)
    assert run.result() is None, "the training ended before the night was killed"


def parent(pid: int) -> int | None:
    """The process that started it, or has inherited it; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return None


def kill_worker_and_night_in_judging(world: World) -> None:
    """Kill the training process while the night lives on, which dies only when it judges."""
    before = world.sealed()
    with world.night("judge") as night:
        wait_until(lambda: world.sealed() > before or night.poll() is not None)
        assert night.poll() is None, world.last_words()
        run = world.run()
        assert run is not None
        assert run.result() is None
        kill(int(run.attempts()[-1]["pid"]))
        assert night.wait(240) == -signal.SIGKILL, world.last_words()
    assert run.result() is not None
    assert len(run.attempts()) == 2
