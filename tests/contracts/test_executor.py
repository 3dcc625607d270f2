"""Both executors: run, survive a killed worker, cancel down to the process, report failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model
from tests.tiny_run import alive, checkpoint_sealed, kill, tiny_run, wait_until
from trainers.executors.local import LocalExecutor
from trainers.executors.on_ray import RayExecutor
from trainers.executors.protocol import Executor, ExecutorError, TrainJob
from trainers.run_folder import RunFolder, read_tail


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    opened: Executor = LocalExecutor(1) if request.param == "local" else RayExecutor(workers=1)
    yield opened
    opened.close()
    with pytest.raises(ExecutorError, match="closed"):
        opened.submit(TrainJob(Path("anywhere")))


def pid_of(run: RunFolder) -> int:
    wait_until(run.attempts)
    return int(run.attempts()[-1]["pid"])


def test_a_run_killed_on_the_way_ends_well(executor: Executor, base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "killed", base, steps=30)
    handle = executor.submit(TrainJob(run.path))
    assert handle.progress().steps == 30
    with pytest.raises(TimeoutError):
        handle.wait(0.01)
    wait_until(lambda: checkpoint_sealed(run))
    first = pid_of(run)
    kill(first)
    outcome = handle.wait(240)
    assert outcome.state == "done", outcome
    assert outcome.attempts == 2
    assert outcome.result is not None
    assert outcome.result.steps == 30
    assert handle.progress().step == 30
    # The second process went on from the checkpoint: step 1 was done once.
    assert [e["step"] for e in read_tail(run.events_file) if e.get("tokens")].count(1) == 1
    # Again: nothing is left to do, and no process is started.
    again = executor.submit(TrainJob(run.path)).wait(60)
    assert (again.state, again.attempts, again.result) == ("done", 0, outcome.result)


def test_cancelling_reaches_the_process(executor: Executor, base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "cancelled", base, steps=100_000)
    waiting = tiny_run(tmp_path / "waiting", base)
    handle = executor.submit(TrainJob(run.path))
    queued = executor.submit(TrainJob(waiting.path))
    pid = pid_of(run)
    queued.cancel()
    handle.cancel()
    assert handle.wait(60).state == "cancelled"
    assert queued.wait(60).state == "cancelled"
    assert not alive(pid)
    assert run.result() is None
    assert waiting.attempts() == []


def test_a_cancelled_run_may_be_submitted_again(
    executor: Executor, base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "again", base, steps=4)
    run.request_cancel()
    outcome = executor.submit(TrainJob(run.path)).wait(240)
    assert outcome.state == "done", outcome


def test_a_run_that_cannot_succeed_says_why_and_is_not_repeated(
    executor: Executor, base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "failing", base, base_digest="0" * 64)
    outcome = executor.submit(TrainJob(run.path)).wait(120)
    assert outcome.state == "failed"
    assert outcome.attempts == 1
    assert "the spec asks for 000000000000" in (outcome.error or "")


def test_a_run_that_keeps_dying_is_given_up(executor: Executor, base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "dying", base, steps=100_000)
    handle = executor.submit(TrainJob(run.path, max_retries=1))
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: len(run.attempts()) == attempt)
        kill(pid_of(run))
    outcome = handle.wait(60)
    assert outcome.state == "failed"
    assert outcome.attempts == 2
    assert "given up after 2 attempts" in (outcome.error or "")
    assert "signal 9" in (outcome.error or "")


def test_a_stuck_run_is_killed_and_given_up(executor: Executor, base: Path, tmp_path: Path) -> None:
    # Importing the libraries takes longer than this without an event: stuck, as far as can be told.
    run = tiny_run(tmp_path / "stuck", base, steps=100_000)
    outcome = executor.submit(TrainJob(run.path, max_retries=0, stall_seconds=0.5)).wait(60)
    assert outcome.state == "failed"
    assert "given up after 1 attempts" in (outcome.error or "")
    assert not alive(pid_of(run))
