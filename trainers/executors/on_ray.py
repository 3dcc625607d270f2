"""The ``ray`` executor: plain Ray tasks, on this machine or a cluster.

A task only supervises: the training itself runs in a process of its own below the Ray worker, so
that GPU memory returns with it and a stuck run can be killed. A lost worker is Ray's to replace
(``max_retries``); the new one resumes from the checkpoint in the run folder or, on a machine that
does not see it, in object storage. What a run reports is read from the folder, or from there. Where
Ray itself is lost, the runs are submitted again through a new connection (``ray_connection``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.executors.protocol import ExecutorError, RunOutcome, TrainJob
from trainers.executors.ray_connection import GONE, Connection, open_connection
from trainers.executors.supervisor import outcome_to_json, supervise
from trainers.run_folder import Progress, RunFolder, StoragePlace, TrainResult
from trainers.run_report import REPORT_SECONDS, Report, report_from_afar, report_of, reporting

_CANCELLED_WAIT_SECONDS = 30
_FLAG_SECONDS = 10
"""A supervisor that sees the flag to cancel has ended its process by then."""
_POLL_SECONDS = 0.1
_LOST = "lost"
"""What a task returns whose machine's Ray died."""


class RayRun:
    """A run as a Ray task. See ``RunHandle``."""

    def __init__(self, job: TrainJob, connection: Connection) -> None:
        self.job = job
        self._run = RunFolder(job.run_dir)
        self._connection = connection
        self._through = 0
        """The number of the connection that it was submitted through."""
        self._reference: Any = None
        self._ended: RunOutcome | None = None
        self._cancelled: float | None = None
        self._far: Report | None = None
        self._next_look = 0.0

    def wait(self, timeout_seconds: float | None = None) -> RunOutcome:
        give_up = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        # Asked again and again instead of waiting within Ray, which may have to be left meanwhile.
        while not self.over():
            if give_up is not None and time.monotonic() >= give_up:
                raise TimeoutError(f"{self.job.run_dir} is still training")
            time.sleep(_POLL_SECONDS)
        assert self._ended is not None
        return self._ended

    def cancel(self) -> None:
        # The flag reaches a task that runs, through its supervisor, which kills the process.
        self._run.request_cancel()
        self._cancelled = self._cancelled or time.monotonic()

    def over(self) -> bool:
        """Whether it has ended; never waits."""
        self._ended = self._ended or self._asked()
        return self._ended is not None

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

    def submit(self) -> None:
        """Hand it to Ray through the present connection, whose lock the caller holds."""
        import ray

        job = self.job
        task = ray.remote(_supervise).options(
            name=f"train {job.run_dir.name}"[:100],
            # Of a team, Ray Train reserves what its processes need; the task only watches.
            num_cpus=job.cpus if job.processes == 1 else 0,
            num_gpus=job.gpus if job.processes == 1 else 0,
            max_retries=job.max_retries,
            retry_exceptions=[OSError],
        )
        self._reference = task.remote(_job_to_plain(job))
        self._through = self._connection.number

    def _asked(self) -> RunOutcome | None:
        """How it ended; None while it has not. A task that was lost with Ray is submitted again."""
        import ray
        from ray import exceptions

        with self._connection.lock:
            if not self._connection.whole():
                return self._lost(GONE) if self._connection.given_up else None
            try:
                if self._through != self._connection.number:
                    if self._run.cancel_requested:
                        return self._lost("")
                    self._run.note("Ray was lost; the run is submitted again")
                    self.submit()
                if self._cancelled is not None:
                    self._withdraw(self._cancelled)
                ready, _ = ray.wait([self._reference], timeout=0)
                text = ray.get(self._reference) if ready else None
                if text == _LOST:
                    self._connection.lose()
                return None if text in (None, _LOST) else _outcome(text)
            except exceptions.TaskCancelledError:
                return RunOutcome("cancelled", len(self._run.attempts()))
            except (exceptions.LocalRayletDiedError, ConnectionError):
                self._connection.lose()
                return None
            except exceptions.RayError as error:
                first_line = str(error).strip().partition("\n")[0]
                said = f"{type(error).__name__}: {first_line[:500]}"
                return self._lost(f"Ray lost the run for good ({said})")

    def _withdraw(self, cancelled: float) -> None:
        """Take a task away that never looks at the flag to cancel."""
        import ray

        if time.monotonic() > cancelled + _FLAG_SECONDS:
            # Its machine does not see the flag: this ends the process below the task.
            ray.cancel(self._reference, force=True)
        elif not self._run.attempts():
            ray.cancel(self._reference, force=False)  # it still waits for a place

    def _lost(self, why: str) -> RunOutcome:
        attempts = len(self._run.attempts())
        if self._run.cancel_requested:
            return RunOutcome("cancelled", attempts)
        return RunOutcome("failed", attempts, error=why, failure="worker_lost")


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
    ) -> None:
        self._connection = open_connection(address, workers, cpus_per_run, gpus_per_run)
        self._closed = False
        self._runs: list[RayRun] = []

    def submit(self, job: TrainJob) -> RayRun:
        if self._closed:
            raise ExecutorError("the executor is closed")
        import ray

        job = replace(job, run_dir=Path(job.run_dir).absolute())
        run = RayRun(job, self._connection)
        while True:
            self._connection.wait_until_whole()
            with self._connection.lock:
                try:
                    # Ray keeps a task that fits nowhere waiting for ever, without an error.
                    _refuse_infeasible(job, ray.cluster_resources())
                    RunFolder(job.run_dir).renew()
                    run.submit()
                except ConnectionError:
                    self._connection.lose()
                else:
                    self._runs.append(run)
                    return run

    def close(self) -> None:
        """Cancels what is not done. The cluster is stopped only if this executor started it."""
        self._closed = True
        give_up = time.monotonic() + _CANCELLED_WAIT_SECONDS
        pending = [run for run in self._runs if not run.over()]
        for run in pending:
            run.cancel()
        for run in pending:
            with suppress(TimeoutError):
                run.wait(give_up - time.monotonic())
        self._runs.clear()
        self._connection.close()


def _supervise(job: dict[str, Any]) -> str:
    """The Ray task: plain values in and out."""
    place = StoragePlace.model_validate(job["storage"]) if job["storage"] else None
    values = {**job, "run_dir": Path(job["run_dir"]), "storage": place}
    made = TrainJob(**values)
    raylet = os.getppid()
    if made.processes > 1:
        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with reporting(RunFolder(made.run_dir), made.storage, made.run_id):
        # Ray leaves a task running whose raylet has died: whoever submitted it does so again.
        outcome = supervise(made, lambda: os.getppid() != raylet)
    lost = outcome.state == "cancelled" and os.getppid() != raylet
    return _LOST if lost else outcome_to_json(outcome)


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


def _refuse_infeasible(job: TrainJob, resources: Mapping[str, float]) -> None:
    for kind, wanted, setting in (
        ("CPU", job.cpus, "training.cpus_per_run"),
        ("GPU", job.gpus, "training.gpus_per_run"),
    ):
        wanted *= job.processes
        if wanted > resources.get(kind, 0):
            raise ExecutorError(
                f"a run asks for {wanted:g} {kind} and the Ray cluster has "
                f"{resources.get(kind, 0):g}: lower {setting}, or add a worker"
            )
