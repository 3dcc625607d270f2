"""The ``ray`` executor: plain Ray tasks, on this machine or a cluster.

A task only supervises: the training itself runs in a process of its own below the Ray worker, so
that GPU memory returns with it and a stuck run can be killed. A lost worker is Ray's to replace
(``max_retries``); the new one resumes from the checkpoint in the run folder or, on a machine that
does not see it, in object storage. What a run reports is read from the folder, or from there.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.settings.bounds import ray_place
from trainers.executors.protocol import (
    ExecutorAway,
    ExecutorError,
    ExecutorLost,
    RunOutcome,
    Say,
    TrainJob,
)
from trainers.executors.supervisor import outcome_to_json, supervise
from trainers.failures import FailureState, classify
from trainers.run_folder import Progress, RunFolder, StoragePlace, TrainResult
from trainers.run_report import REPORT_SECONDS, Report, report_from_afar, report_of, reporting

_CANCELLED_WAIT_SECONDS = 30
_FLAG_SECONDS = 10
"""A supervisor that sees the flag to cancel has ended its process by then."""
_LOOK_SECONDS = 20
"""Between two looks whether the cluster is still the one that has the runs."""
_JOIN_SECONDS = 900.0
"""So long a cluster that does not answer is waited for: its head, or this machine's raylet, may be
starting again, and where containers run its name is not known meanwhile."""
_JOIN_AGAIN_SECONDS = 5.0
_PROBE_SECONDS = 5.0
"""For a connection to the head, before Ray is asked, which tries a head that is away for 14 minutes."""
_WORKERS_SECONDS = 180.0
"""After joining a cluster, its workers may be joining again too."""
_GONE = "its Ray cluster was replaced by another, or this machine's raylet died"
_LEFT_ALONE = ""
"""What a task returns that ended its training because its raylet had died."""
_AWAY = ("LocalRayletDiedError", "RaySystemError", "RpcError")
"""What Ray raises when this driver itself has lost the cluster, not the cluster a worker."""


class _Cluster:
    """The cluster that this driver is connected to. Where its head was replaced, or its own machine's
    raylet died, Ray never says of what is running that it is gone."""

    def __init__(self) -> None:
        self._id = _cluster_id()
        self._next_look = 0.0
        self.lost = False

    def connected(self) -> bool:
        """Whoever asks Ray anything without a connection gets a new cluster, begun on this machine."""
        import ray

        if not ray.is_initialized():
            self.lost = True
        return not self.lost

    def gone(self) -> bool:
        if not self.lost and self._id is not None and time.monotonic() >= self._next_look:
            seen = _cluster_id()
            self.lost = seen is not None and (seen != self._id or not _raylet_lives())
            self._next_look = time.monotonic() + _LOOK_SECONDS
        return self.lost


class RayRun:
    """A run as a Ray task. See ``RunHandle``."""

    def __init__(self, job: TrainJob, reference: Any, cluster: _Cluster) -> None:
        self.job = job
        self._cluster = cluster
        self._run = RunFolder(job.run_dir)
        self._reference = reference
        self._cancelled: float | None = None
        self._far: Report | None = None
        self._next_look = 0.0

    def wait(self, timeout_seconds: float | None = None) -> RunOutcome:
        import ray
        from ray import exceptions

        overdue = self._cancelled is not None and time.monotonic() > self._cancelled + _FLAG_SECONDS
        try:
            if not ray.is_initialized():
                raise ConnectionError("this process is in no cluster any more")
            if overdue:
                # Its machine does not see the flag: taking the task away ends the process below it.
                ray.cancel(self._reference, force=True)
            text = ray.get(self._reference, timeout=timeout_seconds)
        except exceptions.GetTimeoutError as error:
            if self._cluster.gone():
                return self._failed(_GONE, "cluster_lost")
            raise TimeoutError(f"{self.job.run_dir} is still training") from error
        except exceptions.TaskCancelledError:
            return RunOutcome("cancelled", len(self._run.attempts()))
        except (exceptions.RayError, ConnectionError) as error:
            if self._run.cancel_requested:
                return RunOutcome("cancelled", len(self._run.attempts()))
            if isinstance(error, exceptions.RayTaskError):
                # Nobody is lost: whoever watches the run there could not go on, say for a full disk.
                failure = classify(error.cause)
                told = f"its worker could not watch over it: {failure.message}"
                return self._failed(told, failure.state)
            if isinstance(error, ConnectionError) or type(error).__name__ in _AWAY:
                self._cluster.lost = True
            first_line = str(error).strip().partition("\n")[0]
            return self._failed(
                f"Ray lost the run for good ({type(error).__name__}: {first_line[:500]})",
                "cluster_lost" if self._cluster.lost else "worker_lost",
            )
        if text == _LEFT_ALONE:
            self._cluster.lost = True
            return self._failed(_GONE, "cluster_lost")
        return _outcome(text)

    def _failed(self, error: str, failure: FailureState) -> RunOutcome:
        return RunOutcome("failed", len(self._run.attempts()), error=error, failure=failure)

    def cancel(self) -> None:
        import ray

        # The flag reaches a task that runs, through its supervisor, which kills the process. One
        # that still waits for a place never looks at the flag, so it is taken out of the queue.
        self._run.request_cancel()
        self._cancelled = self._cancelled or time.monotonic()
        if self._cluster.connected() and not self._run.attempts():
            ray.cancel(self._reference, force=False)

    def progress(self) -> Progress:
        return self.report().progress

    def report(self) -> Report:
        if not self._run.attempts() and time.monotonic() >= self._next_look:
            # Nobody has begun in the folder here: its worker may have a disk of its own.
            self._next_look = time.monotonic() + REPORT_SECONDS
            far = report_from_afar(self.job.storage, self.job.run_id)
            if far is not None and far.submitted >= self._run.request().submitted:
                self._far = far
        return report_of(self._run) if self._run.attempts() or not self._far else self._far


class RayExecutor:
    """Submits to the Ray cluster at ``address``, or to one started here with room for ``workers``.

    A Ray that is already running in this process is used as it is and left running.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int = 1,
        cpus_per_run: float = 1,
        gpus_per_run: float = 0,
        say: Say = lambda _: None,
    ) -> None:
        self._owner = connect(address, workers, cpus_per_run, gpus_per_run, say)
        # One started here has what it will ever have.
        self._complete_at = time.monotonic() + (_WORKERS_SECONDS if address is not None else 0)
        self._cluster = _Cluster()
        self._closed = False
        self._runs: list[RayRun] = []

    def submit(self, job: TrainJob) -> RayRun:
        import ray

        if self._closed:
            raise ExecutorError("the executor is closed")
        if not self._cluster.connected():
            raise ExecutorLost("the Ray cluster that this night began on is gone")
        # Ray keeps a task that fits nowhere waiting for ever, without an error.
        while refusal := _infeasible(job, ray.cluster_resources()):
            if time.monotonic() >= self._complete_at:
                raise ExecutorError(refusal)
            time.sleep(1)
        job = replace(job, run_dir=Path(job.run_dir).absolute())
        RunFolder(job.run_dir).renew()
        task = ray.remote(_supervise).options(
            name=f"train {job.run_dir.name}"[:100],
            # Of a team, Ray Train reserves what its processes need; the task only watches.
            num_cpus=job.cpus if job.processes == 1 else 0,
            num_gpus=job.gpus if job.processes == 1 else 0,
            max_retries=job.max_retries,
            retry_exceptions=[OSError],
        )
        run = RayRun(job, task.remote(_job_to_plain(job)), self._cluster)
        self._runs.append(run)
        return run

    def close(self) -> None:
        """Cancels what is not done. The cluster is stopped only if this executor started it."""
        import ray

        self._closed = True
        if not self._cluster.connected():
            return  # nobody there to be asked, and Ray ends a process that asks
        pending = [run._reference for run in self._runs]
        if pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
        for run in self._runs:
            if run._reference in pending:
                run.cancel()
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=_CANCELLED_WAIT_SECONDS)
        self._runs.clear()
        if self._owner:
            ray.shutdown()


def _supervise(job: dict[str, Any]) -> str:
    """The Ray task: plain values in and out."""
    place = StoragePlace.model_validate(job["storage"]) if job["storage"] else None
    values = {**job, "run_dir": Path(job["run_dir"]), "storage": place}
    made = TrainJob(**values)
    if made.processes > 1:
        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    raylet = os.getppid()

    def left_alone() -> bool:
        return os.getppid() != raylet

    with reporting(RunFolder(made.run_dir), made.storage, made.run_id):
        # Ray lets a task run on whose raylet has died, and nobody would know of it.
        outcome = supervise(made, left_alone)
    return (
        _LEFT_ALONE if outcome.state == "cancelled" and left_alone() else outcome_to_json(outcome)
    )


def _job_to_plain(job: TrainJob) -> dict[str, Any]:
    return {
        "run_dir": str(job.run_dir),
        "cpus": job.cpus,
        "gpus": job.gpus,
        "max_retries": job.max_retries,
        "stall_seconds": job.stall_seconds,
        "storage": job.storage.model_dump() if job.storage else None,
        "run_id": job.run_id,
        "processes": job.processes,
    }


def _outcome(text: str) -> RunOutcome:
    import json

    value = json.loads(text)
    result = TrainResult.model_validate(value["result"]) if value["result"] else None
    return RunOutcome(
        value["state"], value["attempts"], value["error"], result, value.get("failure")
    )


def _infeasible(job: TrainJob, resources: Mapping[str, float]) -> str | None:
    """Why the job can never run with these resources, and what to do."""
    for kind, wanted, setting in (
        ("CPU", job.cpus, "training.cpus_per_run"),
        ("GPU", job.gpus, "training.gpus_per_run"),
    ):
        wanted *= job.processes
        if wanted > resources.get(kind, 0):
            return (
                f"a run asks for {wanted:g} {kind} and the Ray cluster has "
                f"{resources.get(kind, 0):g}: lower {setting}, or add a worker"
            )
    return None


def connect(
    address: str | None, workers: int, cpus: float, gpus: float, say: Say = lambda _: None
) -> bool:
    """Connect to a cluster or start one; True when it was started here.

    Raises:
        ExecutorAway: nobody answers at the address, for ``_JOIN_SECONDS``.
        ExecutorError: Ray is not installed, or does not start here.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ExecutorError(
            "the ray executor needs the package ray: install the extra 'train', "
            "or set training.executor to local"
        ) from error
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        _join(address, quiet, say)
        return False
    try:
        # On loopback and for this process only: a token would just leave a file in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=max(1, round(workers * cpus)),
            num_gpus=max(0, round(workers * gpus)),
            include_dashboard=False,
            **quiet,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ExecutorError(f"Ray does not start on this machine: {error}") from error
    return True


def _cluster_id() -> str | None:
    """Of the cluster that answers at this driver's address now. None: nobody does, or Ray's client is
    between, which notices by itself when it loses its cluster."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # nothing public tells
    from ray.exceptions import RayError

    if ray.util.client.ray.is_connected():
        return None
    try:
        found = GcsClient(address=ray.get_runtime_context().gcs_address)
    except RayError:
        return None
    return str(found.cluster_id.hex())


def _raylet_lives() -> bool:
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Alive"] for node in ray.nodes())


def _join(address: str, quiet: Mapping[str, Any], say: Say = lambda _: None) -> None:
    """Connect to a cluster; through Ray's client (``ray://host:port``) from a machine outside it."""
    import ray

    ends, told = time.monotonic() + _JOIN_SECONDS, False
    while True:
        try:
            _probe(address)
            ray.init(address=address, **quiet)
            return
        except (RuntimeError, OSError) as error:
            ray.shutdown()
            why = f"no Ray at {address} ({error})"
            if time.monotonic() >= ends:
                raise ExecutorAway(f"{why}: start it, or check training.ray_address") from error
            if not told:
                say(f"{why}: waiting {_JOIN_SECONDS / 60:.0f} minutes for it")
                told = True
        except ValueError as error:
            refused = f"no Ray at {address} ({error}): check training.ray_address"
            raise ExecutorError(refused) from error
        time.sleep(_JOIN_AGAIN_SECONDS)


def _probe(address: str) -> None:
    """Raises OSError where nobody listens, ValueError for what is no address."""
    place = ray_place(address)
    if place is not None:
        socket.create_connection(place, timeout=_PROBE_SECONDS).close()
