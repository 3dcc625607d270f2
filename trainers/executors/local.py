"""The ``local`` executor: runs on this machine, each in a process of its own, a bounded number at once."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from trainers.executors.protocol import ExecutorError, RunOutcome, TrainJob
from trainers.executors.supervisor import supervise
from trainers.run_folder import Progress, RunFolder
from trainers.run_report import Report, report_of

MAX_QUEUED = 1000


class LocalRun:
    """A run in the local executor. See ``RunHandle``."""

    def __init__(self, job: TrainJob, future: Future[RunOutcome]) -> None:
        self.job = job
        self._run = RunFolder(job.run_dir)
        self._future = future

    def wait(self, timeout_seconds: float | None = None) -> RunOutcome:
        try:
            return self._future.result(timeout_seconds)
        except CancelledError:
            return RunOutcome("cancelled", 0)

    def cancel(self) -> None:
        self._run.request_cancel()
        self._future.cancel()

    def progress(self) -> Progress:
        return self._run.progress()

    def report(self) -> Report:
        return report_of(self._run)


class LocalExecutor:
    """Runs at most ``workers`` at once; the others wait in order."""

    def __init__(self, workers: int = 1) -> None:
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="training")
        self._waiting: list[Future[RunOutcome]] = []

    def submit(self, job: TrainJob) -> LocalRun:
        self._waiting = [future for future in self._waiting if not future.done()]
        if self._closing.is_set():
            raise ExecutorError("the executor is closed")
        if job.processes > 1:
            raise ExecutorError(
                "several processes for one run need a Ray cluster: set training.executor to ray, "
                "or training.processes_per_run to 1"
            )
        if len(self._waiting) >= MAX_QUEUED:
            raise ExecutorError(f"{MAX_QUEUED} runs are waiting: wait for some before adding more")
        RunFolder(job.run_dir).renew()
        future = self._pool.submit(supervise, job, self._closing.is_set)
        self._waiting.append(future)
        return LocalRun(job, future)

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
