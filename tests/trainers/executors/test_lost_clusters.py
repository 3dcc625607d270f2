"""When it is the cluster that a driver has lost, or has not found yet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray

from tests.prefect_server import free_port
from tests.tiny_run import tiny_run
from trainers.executors import on_ray
from trainers.executors.on_ray import RayExecutor, RayRun
from trainers.executors.protocol import ExecutorAway, ExecutorLost, TrainJob


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
from trainers.executors.protocol import ExecutorAway, ExecutorLost, TrainJob
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
    ended: list[int] = []
    said: list[str] = []

    def init(**how: object) -> None:
        tries.append(how["address"])
        if len(tries) < 3:
            raise RuntimeError("No node info found matching attributes: '127.0.0.1'")

    monkeypatch.setattr(ray, "init", init)
    # The real one would end the Ray of the tests beside this one.
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(len(tries)))
    monkeypatch.setattr(on_ray, "_JOIN_AGAIN_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        on_ray._join(address, {}, said.append)
        assert (tries, ended) == ([address] * 3, [1, 2])
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
    ray_executor: RayExecutor,
    error: Exception,
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(*_: object, **__: object) -> None:
        raise error

    run = tiny_run(tmp_path / "run", tiny_base, steps=1)
    monkeypatch.setattr(on_ray, "_cluster_id", lambda: None)
    monkeypatch.setattr(ray, "get", get)
    cluster = on_ray._Cluster()
    outcome = RayRun(TrainJob(run.path), None, cluster).wait(0.01)
    assert (outcome.failure, cluster.lost) == ("cluster_lost", True)


CUT_OFF = """
import sys
from pathlib import Path
import ray
from trainers.executors.on_ray import RayExecutor
from trainers.executors.protocol import ExecutorAway, ExecutorLost, TrainJob

job = TrainJob(Path(sys.argv[1]))
executor = RayExecutor()
handle = executor.submit(job)
ray.shutdown()  # as Ray's client does when its server is gone
outcome = handle.wait(60)
assert (outcome.state, outcome.failure) == ("failed", "cluster_lost"), outcome
try:
    executor.submit(job)
except ExecutorLost:
    handle.cancel()
    executor.close()
    print("in a new Ray" if ray.is_initialized() else "in none")
"""


def test_a_driver_that_is_in_no_cluster_any_more_begins_none_by_asking(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base)
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF, str(run.path)], capture_output=True, text=True, timeout=280
    )
    assert done.stdout.splitlines() == ["in none"], done.stderr[-3000:]
