"""When it is not the training process that dies but who watches it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_run import alive, checkpoint_sealed, kill, tiny_run, wait_until
from trainers.executors.on_ray import RayExecutor
from trainers.executors.protocol import ExecutorError, TrainJob
from trainers.run_folder import RunFolder, read_tail


@pytest.fixture
def ray_executor() -> Iterator[RayExecutor]:
    executor = RayExecutor(workers=1)
    yield executor
    executor.close()


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
