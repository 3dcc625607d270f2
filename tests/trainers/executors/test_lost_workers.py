"""When it is not the training process that dies but who watches it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray

from infra.objects.directory import DirectoryStore
from tests.prefect_server import free_port
from tests.tiny_run import (
    alive,
    checkpoint_sealed,
    kill,
    tiny_run,
    wait_until,
)
from trainers.executors import on_ray
from trainers.executors.local import LocalExecutor
from trainers.executors.on_ray import RayExecutor, RayRun
from trainers.executors.protocol import (
    ExecutorAway,
    ExecutorError,
    ExecutorLost,
    RunOutcome,
    TrainJob,
)
from trainers.executors.supervisor import supervise
from trainers.failures import TrainingError, classify
from trainers.run import train_here
from trainers.run_folder import RunFolder, StoragePlace, read_tail
from trainers.run_report import reporting
from trainers.run_storage import RunStorage
from trainers.run_team import MemberFailed, _leading, _member, failure_in


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_lost_ray_worker_is_replaced_and_the_run_resumes(
    ray_executor: RayExecutor, tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=60)
    handle = ray_executor.submit(TrainJob(run.path))
    wait_until(lambda: checkpoint_sealed(run))
    first = int(run.attempts()[-1]["pid"])
    kill(parent_of(first))
    wait_until(lambda: not alive(first), 30)
    outcome = handle.wait(240)
    assert (outcome.state, outcome.attempts) == ("done", 2), outcome
    steps = [event["step"] for event in read_tail(run.events_file) if event.get("tokens")]
    assert steps.count(1) == 1
    assert steps[-1] == 60


def test_a_cluster_that_was_replaced_takes_no_night_with_it_until_its_deadline(
    ray_executor: RayExecutor, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["old"]
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0)
    monkeypatch.setattr(on_ray, "_cluster_id", lambda: answers[-1])
    executor = RayExecutor()
    run = tiny_run(tmp_path / "run", tiny_base, steps=100_000)
    handle = executor.submit(TrainJob(run.path))
    for still in ("old", None):  # nobody answers: it may come back
        answers.append(still)
        with pytest.raises(TimeoutError):
            handle.wait(0.01)
    answers.append("new")
    outcome = handle.wait(0.01)
    assert (outcome.state, outcome.failure) == ("failed", "cluster_lost")
    with pytest.raises(ExecutorLost):
        executor.submit(TrainJob(run.path))
    executor.close()
    handle._cluster.lost = False
    handle.cancel()
    assert handle.wait(240).state == "cancelled"


# A Ray of its own: that of the other tests goes on.
ALONE = """
import sys
from pathlib import Path
from tests.tiny_run import alive, kill, wait_until
from tests.trainers.executors.test_lost_workers import parent_of
from trainers.executors import on_ray
from trainers.executors.protocol import ExecutorLost, TrainJob
from trainers.run_folder import RunFolder

on_ray._LOOK_SECONDS = 1
run = RunFolder(Path(sys.argv[1]))
executor = on_ray.RayExecutor()
handle = executor.submit(TrainJob(run.path))
wait_until(run.attempts, 200)
trained = int(run.attempts()[-1]["pid"])
kill(parent_of(parent_of(trained)))  # the raylet
outcome = handle.wait(200)
assert (outcome.state, outcome.failure) == ("failed", "cluster_lost"), outcome
wait_until(lambda: not alive(trained), 200)  # nobody trains unwatched
try:
    executor.submit(TrainJob(run.path))
except ExecutorLost:
    print("lost")
"""


def test_where_the_machines_own_raylet_dies_its_runs_end_and_are_said_to_be_lost(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=100_000)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(run.path)], capture_output=True, text=True, timeout=280
    )
    assert "lost" in done.stdout.splitlines(), done.stderr[-3000:]


# The head takes no runs, as in a cluster; its worker comes after the run was handed in.
LATE = """
import subprocess, sys, threading
from pathlib import Path
from trainers.executors.on_ray import RayExecutor
from trainers.executors.protocol import TrainJob

run, port, folder = sys.argv[1:]
start = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--object-store-memory=80000000"]
head = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=0"]
worker = [f"--address=127.0.0.1:{port}", "--num-cpus=1"]
nodes = []

def begin(*arguments):
    nodes.append(subprocess.Popen([*start, *arguments], stdout=subprocess.DEVNULL))

begin(*head, "--include-dashboard=false")
try:
    executor = RayExecutor(f"127.0.0.1:{port}")
    threading.Timer(2, begin, worker).start()
    print(executor.submit(TrainJob(Path(run))).wait(200).state)
finally:
    for node in reversed(nodes):
        node.terminate()
        node.wait()
"""


def test_a_head_that_is_not_there_yet_and_then_its_worker_are_waited_for(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=2)
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as short:  # holds sockets
        done = subprocess.run(
            [sys.executable, "-c", LATE, str(run.path), str(free_port()), short],
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        )
    assert done.stdout.split() == ["done"], done.stderr[-3000:]


def test_a_cluster_is_tried_again_for_minutes_and_then_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[object] = []
    said: list[str] = []

    def init(**how: object) -> None:
        tries.append(how["address"])
        if len(tries) < 3:
            raise RuntimeError("No node info found matching attributes: '127.0.0.1'")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the other tests' Ray stays
    monkeypatch.setattr(on_ray, "_JOIN_AGAIN_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        on_ray._join(address, {}, said.append)
        assert tries == [address] * 3
        assert len(said) == 1 and f"no Ray at {address} (No node" in said[0]
        tries.clear()
        monkeypatch.setattr(on_ray, "_JOIN_SECONDS", 0)
        with pytest.raises(ExecutorAway, match=r"no Ray at .* check training\.ray_address"):
            on_ray._join(address, {})
    assert len(tries) == 1


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{}", "127.0.0.1:{}", "nowhere.invalid:{}"])
def test_where_nobody_listens_ray_is_not_asked_which_would_try_for_long(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was asked"))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(on_ray, "_JOIN_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(on_ray, "_JOIN_SECONDS", 0.3)
    said: list[str] = []
    with pytest.raises(ExecutorAway, match=r"start it, or check training\.ray_address"):
        on_ray._join(address.format(free_port()), {}, said.append)
    assert len(said) == 1, "at once, and once"


@pytest.mark.parametrize("error", [ConnectionError("no client"), ray.exceptions.RpcError("away")])
def test_a_driver_that_lost_its_connection_has_lost_the_cluster(
    error: Exception, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_: object, **__: object) -> None:
        raise error

    run = tiny_run(tmp_path / "run", tiny_base, steps=1)
    monkeypatch.setattr(on_ray, "_cluster_id", lambda: None)
    monkeypatch.setattr(ray, "get", get)
    cluster = on_ray._Cluster()
    outcome = RayRun(TrainJob(run.path), None, cluster).wait(0.01)
    assert (outcome.failure, cluster.lost) == ("cluster_lost", True)


def test_a_worker_lost_with_its_disk_is_replaced_by_one_that_takes_up_its_checkpoint(
    ray_executor: RayExecutor, tiny_base: Path, tmp_path: Path
) -> None:
    place = StoragePlace(url=str(tmp_path / "objects"))
    run = tiny_run(tmp_path / "run", tiny_base, steps=30, request={"storage": place.model_dump()})
    storage = RunStorage.of(DirectoryStore(tmp_path / "objects"), run.spec().digest)
    storage.push_inputs(run)
    job = TrainJob(run.path, storage=place, run_id=storage.run_id)
    handle = ray_executor.submit(job)
    wait_until(storage.steps)
    process = int(run.attempts()[-1]["pid"])
    worker = parent_of(process)
    os.kill(worker, signal.SIGSTOP)  # it must not see its folder go, as on a machine that is lost
    kill(process)
    wait_until(lambda: not alive(process), 30)
    shutil.rmtree(run.path)
    kill(worker)
    outcome = handle.wait(240)
    assert outcome.state == "done", outcome
    steps = [event["step"] for event in read_tail(run.events_file) if event.get("tokens")]
    assert steps.count(1) == 1, "it began anew"
    assert steps[-1] == 30
    assert len(run.attempts()) == 1, "the disk was to be another one"
    # Who waits elsewhere sees none of the folder, but what the worker left in storage.
    shutil.rmtree(run.path)
    tiny_run(run.path, tiny_base, steps=30, request={"storage": place.model_dump()})
    seen = handle.report()
    assert (seen.progress.step, seen.progress.steps, seen.processes) == (30, 30, 1)
    assert seen.progress.tokens_per_second and seen.log_bytes
    assert handle.progress() == seen.progress


def test_killed_twice_without_progress_it_computes_half_as_much_at_once(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=8)
    outcomes: list[RunOutcome] = []
    watched = threading.Thread(target=lambda: outcomes.append(supervise(TrainJob(run.path))))
    watched.start()
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: len(run.attempts()) == attempt)
        assert run.micro_batch() is None
        kill(int(run.attempts()[-1]["pid"]))
    watched.join(240)
    (outcome,) = outcomes
    assert (outcome.state, outcome.attempts) == ("done", 3), outcome
    assert outcome.result is not None
    assert (outcome.result.steps, outcome.result.micro_batch) == (8, 2)
    assert "killed twice without progress" in outcome.result.notes[0]


def test_a_run_whose_turn_comes_after_the_nights_end_is_not_begun(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, request={"deadline": 1.0})
    outcome = supervise(TrainJob(run.path))
    assert (outcome.state, outcome.attempts) == ("cancelled", 0)
    assert "before its turn came" in (outcome.error or "")
    assert run.attempts() == []


def test_a_job_that_fits_no_worker_is_refused_at_once(
    ray_executor: RayExecutor, tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base)
    with pytest.raises(ExecutorError, match=r"4 GPU .* has 0: lower training\.gpus_per_run"):
        ray_executor.submit(TrainJob(run.path, gpus=4))


def test_training_never_outlives_its_supervisor(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=100_000)
    code = (
        "import sys; from pathlib import Path;"
        "from trainers.executors.protocol import TrainJob;"
        "from trainers.executors.supervisor import supervise;"
        "supervise(TrainJob(Path(sys.argv[1])))"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code, str(run.path)])
    try:
        wait_until(run.attempts)
        pid = int(run.attempts()[-1]["pid"])
        assert alive(pid)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: not alive(pid), 30)
    assert RunFolder(run.path).result() is None


@pytest.mark.timeout(900)  # several processes, each with all the libraries
def test_two_processes_train_one_adapter_with_the_steps_of_one(
    ray_executor: RayExecutor, tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=6, processes=2)
    with pytest.raises(ExecutorError, match=r"training\.executor"):
        LocalExecutor(1).submit(TrainJob(run.path, processes=2))
    with pytest.raises(ExecutorError, match=r"3 CPU .* has 2"):
        ray_executor.submit(TrainJob(run.path, processes=3))
    outcome = ray_executor.submit(TrainJob(run.path, processes=2)).wait(600)
    assert outcome.state == "done", outcome
    assert outcome.result is not None
    assert (outcome.result.steps, outcome.result.processes) == (6, 2)
    assert run.notes() == ["2 processes train together"]
    alone = tiny_run(tmp_path / "alone", tiny_base, steps=6)
    lone = train_here(alone)
    steps, own = (
        [event for event in read_tail(one.events_file) if event.get("tokens")]
        for one in (run, alone)
    )
    assert [event["tokens"] for event in steps] == [event["tokens"] for event in own]
    losses = [event["loss"] for event in own]
    assert [event["loss"] for event in steps] == pytest.approx(losses, rel=1e-3)
    assert outcome.result.validation_loss == pytest.approx(lone.validation_loss, rel=0.05)


def test_what_ended_a_process_of_a_team_is_read_from_rays_message() -> None:
    failure = classify(TrainingError('the loss is nan: "lower" it', "loss_not_finite"))
    text = f"Training failed\n[Rank 1] MemberFailed: night-school-failure:{failure.to_json()}:end\n"
    assert failure_in(text) == failure
    assert failure_in("[Rank 0] the actor died") is None
    assert failure_in("night-school-failure:{broken}:end") is None


def test_a_store_that_cannot_be_opened_ends_no_run_and_no_following(
    tiny_base: Path, tmp_path: Path
) -> None:
    job = TrainJob(
        tmp_path / "run", storage=StoragePlace(url="ftp://nowhere"), run_id="lights", max_retries=0
    )
    run = tiny_run(job.run_dir, tiny_base)
    assert RayRun(job, None, None).report().progress.steps == 12
    with reporting(run, job.storage, job.run_id):
        run.request_cancel()
        assert supervise(job).state == "cancelled"
    assert "begins with ftp://" in run.notes()[0]


def test_a_teams_leader_writes_nothing_while_the_one_of_a_killed_driver_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.run._LOCK_WAIT_SECONDS", 0)
    run = RunFolder(tmp_path)
    with _leading(run), pytest.raises(MemberFailed) as ended:
        _member({"run": str(run.path)})
    failure = failure_in(str(ended.value))
    assert failure is not None and failure.again and "another team" in failure.message
    assert not run.events_file.exists() and not run.begun.exists()
