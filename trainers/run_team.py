"""One run by several processes: Ray Train starts them, and each does what a lone process does.

The supervised process of the run only asks for them (``TorchTrainer``), so that a run is watched, ended and
begun again as any other: when it dies, Ray ends its workers. They share the run's folder: on several
machines ``training.runs`` must be on a disk that all of them see.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from trainers.failures import Failure, TrainingError, classify
from trainers.run_folder import RunFolder, TrainResult

_MARK = "night-school-failure:"
_FAILURE = re.compile(re.escape(_MARK) + r"(\{.*?\}):end")
_PLACES_SECONDS = 30.0
_PASSED_ON = ("OMP_NUM_THREADS", "PYTHONPATH", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")


class MemberFailed(Exception):
    """What ended one of the processes, as its text: exceptions change class between processes."""


class TeamLost(OSError):
    """A process of the team went away; another try may have better luck."""


def train_together(run: RunFolder) -> TrainResult:
    """Carry the run out with ``spec.processes`` processes of the Ray cluster at ``RAY_ADDRESS``.

    Raises TrainingError (for good), OSError and MemoryError (worth another try).
    """
    spec, request = run.spec(), run.request()
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise TrainingError(
            "several processes for one run need the ray executor: set training.executor to ray, "
            "or training.processes_per_run to 1",
            "spec_invalid",
        )
    if request.backend == "unsloth":
        raise TrainingError(
            "unsloth trains in one process: set training.backend to peft, "
            "or training.processes_per_run to 1",
            "spec_invalid",
        )
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # What its own actors say every second without a dashboard is no news of the run.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address=address, runtime_env={"env_vars": variables}, **quiet)
    gpus = request.gpus_per_process
    run.begun.unlink(missing_ok=True)
    done = threading.Event()
    threading.Thread(target=_stay_awake, args=(run, done), daemon=True).start()
    trainer = TorchTrainer(
        _member,
        train_loop_config={"run": str(run.path)},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.processes,
            use_gpu=bool(gpus),
            resources_per_worker={
                "CPU": request.cpus_per_process,
                **({"GPU": gpus} if gpus else {}),
            },
        ),
        run_config=RunConfig(
            name="team",
            storage_path=str(run.path / "ray"),
            # Trying again is the supervisor's: it counts, and says so.
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        _again(run, failure_in(str(error)))
        raise TeamLost(f"a process of the team was lost: {error}"[:2000]) from error
    finally:
        done.set()
    result = run.result()
    if result is None:
        raise TeamLost(f"the team left no result in {run.path}: is it on a disk that all share?")
    return result


def _again(run: RunFolder, failure: Failure | None) -> None:
    """Raise what a lone process would have; nothing where the process said nothing."""
    if failure is None:
        return
    if failure.state == "out_of_memory":
        if run.halve_micro_batch("out of memory") is None:
            raise TrainingError(failure.message, "out_of_memory")
        raise MemoryError(failure.message)
    if not failure.again:
        raise TrainingError(failure.message, failure.state)
    raise OSError(failure.message)


def failure_in(text: str) -> Failure | None:
    """The failure of the first process whose last word is in a message of Ray Train's."""
    found = _FAILURE.search(text)
    if found is None:
        return None
    try:
        return Failure.from_json(found[1])
    except (ValueError, KeyError):
        return None


def _stay_awake(run: RunFolder, done: threading.Event) -> None:
    """A run that waits for places in the cluster is not stuck."""
    while not done.wait(_PLACES_SECONDS) and not run.begun.exists():
        run.events_file.touch()


def _left_alone(error: BaseException) -> bool:
    """Whether a process waited in vain for another one of its team."""
    said = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(
        word in said for word in ("gloo", "nccl", "distbackend")
    )


def _member(config: dict[str, Any]) -> None:
    """What each process does."""
    from trainers.backends.team import this_team
    from trainers.run import limit_threads, train_here

    run = RunFolder(Path(config["run"]))
    limit_threads()
    team = this_team()
    try:
        with _leading(run) if team.leads else nullcontext():
            if team.leads:
                run.note(f"{team.size} processes train together")
                run.begun.touch()
            train_here(run)
    except Exception as error:
        if _left_alone(error):
            raise  # the one that went away has the reason, if there is one to tell
        raise MemberFailed(f"{_MARK}{classify(error).to_json()}:end") from error


@contextmanager
def _leading(run: RunFolder) -> Iterator[None]:
    """Be the only one that writes: the team of a killed driver may live on for a while.

    Raises TeamLost when it does not go away.
    """
    from trainers.run import acquire

    with run.leader_lock_file.open("a") as lock:
        if not acquire(lock):
            raise TeamLost(f"another team still trains in {run.path}")
        yield
