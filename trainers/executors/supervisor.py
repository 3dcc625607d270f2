"""Start the process of one run, watch it, start it again when it was lost.

Used by every executor: in a thread of this process, or inside a Ray task. The training process is
tied to its supervisor by standard input, so that it never outlives it: a supervisor started anew
finds the folder free and resumes from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trainers
from infra.objects.store import ObjectStoreError
from infra.settings.sources import SettingsError
from trainers.executors.protocol import RunOutcome, TrainJob
from trainers.failures import Failure, classify
from trainers.run_folder import RunFolder, append_line, now
from trainers.run_storage import storage_of

_POLL_SECONDS = 0.2
_DEADLINE_GRACE_SECONDS = 900
"""A run past its deadline stops after its present step; past this grace it is killed."""
_BUSY_EXIT = 75
_STUCK, _STUCK_CODE = "stuck", -1000


def supervise(job: TrainJob, abandoned: Callable[[], bool] = lambda: False) -> RunOutcome:
    """Carry out ``job`` to its end, with at most ``max_retries`` further processes.

    Attempts are counted in the run folder, so that a run which takes its worker down with it is
    bounded too, however many supervisors it goes through.

    Args:
        abandoned: asked a few times a second; True ends the process and the run counts as cancelled.
    """
    run = RunFolder(job.run_dir)
    kept_away = _take_up(run, job)
    if kept_away is not None:
        return kept_away
    code, killed_at = 0, None
    while True:
        attempts = len(run.attempts())
        ended = _ended(run, job, attempts, abandoned)
        if ended is not None:
            return ended
        if attempts > job.max_retries:
            failure = run.failure()
            state = _STUCK if code == _STUCK_CODE else failure.state if failure else "worker_lost"
            return RunOutcome("failed", attempts, _given_up(run, attempts, code), failure=state)
        if attempts:
            time.sleep(min(2.0 ** (attempts - 1), 30) * 0.1)
        if code == -signal.SIGKILL:
            here = run.progress().step
            if killed_at is not None and here <= killed_at:
                # Twice at the same place: most likely the kernel, which takes back memory that way.
                run.halve_micro_batch("killed twice without progress, perhaps out of memory")
            killed_at = here
        code = _attempt(run, job, attempts + 1, abandoned)
        if code > 0 and code != _BUSY_EXIT and run.result() is None:
            error = run.error() or f"the training process ended with exit code {code}"
            failure = run.failure()
            return RunOutcome(
                "failed",
                attempts + 1,
                error=f"{error} (log: {run.log_file})",
                failure=failure.state if failure else "unexpected",
            )


def _take_up(run: RunFolder, job: TrainJob) -> RunOutcome | None:
    """Bring the run's inputs, or what was asked of it last, to a machine that has a disk of its own.

    Returns how the run ends where they are not to be had.
    """
    try:
        storage = storage_of(job.storage, job.run_id)
        if storage is not None:
            storage.pull_inputs(run)
    except (ObjectStoreError, SettingsError) as error:
        failure = classify(error)
        if not run.spec_file.exists():
            told = f"this worker cannot read what it is to train: {failure.message}"
            return RunOutcome("failed", 0, told, failure=failure.state)
        _note(run, "looking for what was asked last", failure)
    if not run.spec_file.exists():
        told = (
            f"this worker sees neither {run.path} nor a copy of it: turn training.store_checkpoints "
            "on, or put training.runs on a disk that all share"
        )
        return RunOutcome("failed", 0, told, failure="storage_unreachable")
    return None


def _leave_result(run: RunFolder, job: TrainJob) -> Failure | None:
    """Leave adapter and result where who waits for them finds them; what kept us from it."""
    try:
        storage = storage_of(job.storage, job.run_id)
        if storage is not None:
            storage.push_result(run)
    except (ObjectStoreError, SettingsError) as error:
        failure = classify(error)
        _note(run, "storing the result", failure)
        return failure
    return None


def _note(run: RunFolder, what: str, failure: Failure) -> None:
    run.note(f"{what} failed ({failure.state}): {failure.message}"[:500])


def _ended(
    run: RunFolder, job: TrainJob, attempts: int, abandoned: Callable[[], bool]
) -> RunOutcome | None:
    result = run.result()
    if result is not None:
        failure = None if result.stopped == "paused" else _leave_result(run, job)
        if failure is None:
            return RunOutcome("done", attempts, result=result)
        return RunOutcome("done", attempts, failure.message, result, failure.state)
    if run.cancel_requested or abandoned():
        return RunOutcome("cancelled", attempts)
    deadline = run.request().deadline
    if deadline is not None and now() >= deadline and not attempts and not run.progress().step:
        # One step would make an adapter that is worth nothing and stands in the next night's way.
        return RunOutcome("cancelled", 0, "the night ended before its turn came")
    return None


def _given_up(run: RunFolder, attempts: int, code: int) -> str:
    reason = f"killed by signal {-code}" if code < 0 else run.error() or "the worker was lost"
    if code == _STUCK_CODE:
        reason = "stuck: no step for too long"
    return f"given up after {attempts} attempts, the last: {reason} (log: {run.log_file})"


def _attempt(run: RunFolder, job: TrainJob, number: int, abandoned: Callable[[], bool]) -> int:
    """One process from start to end; its exit code, negative for a signal."""
    started = now()
    with run.log_file.open("ab") as log:
        logged = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.run", str(run.path), "--supervised"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(job),
            # A group of its own: cancelling reaches whatever the training libraries start.
            start_new_session=True,
        )
    try:
        entry = {"attempt": number, "pid": process.pid, "time": started, "log_bytes": logged}
        append_line(run.attempts_file, entry)
        while True:
            try:
                return process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if run.cancel_requested or abandoned():
                    _kill(process)
                elif _overdue(run, job, started):
                    return _STUCK_CODE
    finally:
        _kill(process)


def _overdue(run: RunFolder, job: TrainJob, started: float) -> bool:
    seen = started
    with contextlib.suppress(FileNotFoundError):
        seen = max(seen, run.events_file.stat().st_mtime)
    deadline = run.request().deadline
    late = deadline is not None and now() > max(deadline, started) + _DEADLINE_GRACE_SECONDS
    return late or now() - seen > job.stall_seconds


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _environment(job: TrainJob) -> dict[str, str]:
    environment = dict(os.environ)
    root = str(Path(trainers.__file__).resolve().parents[1])
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, int(job.cpus))))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The base model is a local folder: nothing is fetched while training.
    environment["HF_HUB_OFFLINE"] = "1"
    return environment


def outcome_to_json(outcome: RunOutcome) -> str:
    """For the way between processes: plain text, independent of class versions."""
    return json.dumps(
        {
            "state": outcome.state,
            "attempts": outcome.attempts,
            "error": outcome.error,
            "result": outcome.result.model_dump() if outcome.result else None,
            "failure": outcome.failure,
        }
    )
