"""Where training runs: the seam between the night and the machines.

Both executors pass ``tests/contracts/test_executor.py``. Neither torch nor Ray is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from trainers.run_folder import Progress, StoragePlace, TrainResult
from trainers.run_report import Report

State = Literal["done", "failed", "cancelled"]


class ExecutorError(Exception):
    """The executor cannot take or follow runs; the message says what to do."""


class ExecutorLost(ExecutorError):
    """The machines are gone with what they carried out; other ones can go on with it."""


class ExecutorAway(ExecutorError):
    """Nobody answered where the machines should be, for as long as one that starts again may take."""


Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainJob:
    """One run to carry out: a run folder made by ``RunFolder.create``, and what it may use.

    A machine that does not see the folder takes the run up from ``storage`` and leaves its checkpoints,
    reports and result there; a request to stop passes only through a folder that both see.
    """

    run_dir: Path
    cpus: float = 1
    gpus: float = 0
    max_retries: int = 3
    """Further processes after one that was killed, got stuck, or failed for now."""
    stall_seconds: float = 1800
    """A process without an event for this long counts as stuck and is killed."""
    storage: StoragePlace | None = None
    run_id: str | None = None
    """The run's name in ``storage``."""
    processes: int = 1
    """That train together, each with ``cpus`` and ``gpus``; more than one needs a Ray cluster."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. ``result`` is there when done, ``error`` when failed.

    Of a done run ``error`` and ``failure`` say why its result lies in the worker's folder alone.
    """

    state: State
    attempts: int
    """Processes started for it since it was submitted."""
    error: str | None = None
    result: TrainResult | None = None
    failure: str | None = None
    """The named state, see ``trainers.failures``."""


class RunHandle(Protocol):
    job: TrainJob

    def wait(self, timeout_seconds: float | None = None) -> RunOutcome:
        """Block until the run ends. Raises TimeoutError after ``timeout_seconds``; may be called again."""
        ...

    def cancel(self) -> None:
        """End the run at once, its process included; checkpoints stay. Does not block."""
        ...

    def progress(self) -> Progress:
        """How far it is; cheap, never blocks on the worker."""
        ...

    def report(self) -> Report:
        """As ``progress``, with what was noted and printed lately."""
        ...


class Executor(Protocol):
    def submit(self, job: TrainJob) -> RunHandle:
        """Queue a run. A folder that holds a result already ends at once with it.

        Raises ExecutorError when the executor is closed, its queue full or the job cannot ever run.
        """
        ...

    def close(self) -> None:
        """End what is running (checkpoints stay, submitting again resumes) and free the workers."""
        ...
