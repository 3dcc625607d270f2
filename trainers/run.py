"""Carry out the training run of one folder: ``python -m trainers.run RUN_DIR``.

One process per run, so that memory returns and a stuck run can be killed. The same command serves
every executor; run again after a crash it continues from the last whole checkpoint, run again after
success it does nothing.

Exit codes: 0 done; 1 failed for good (``error.json`` says why, by a named state); 75 failed for now,
try again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from infra.artifacts.base import fingerprint
from infra.artifacts.manifest import ArtifactError
from infra.files import write_atomically
from infra.objects.store import ObjectStoreError
from infra.settings.sources import load_settings
from trainers.backends.protocol import StepEvent, TrainingBackend
from trainers.base_model import BaseModelError, prepare_base
from trainers.failures import TrainingError, classify
from trainers.run_folder import (
    BackendName,
    RunFolder,
    RunRequest,
    TrainResult,
    append_line,
    now,
)
from trainers.run_storage import RunStorage, open_place
from trainers.spec import TrainSpec

EXIT_DONE, EXIT_FAILED, EXIT_AGAIN = 0, 1, 75
_LOCK_WAIT_SECONDS = 30


def train(run: RunFolder, on_step: Callable[[StepEvent], None] | None = None) -> TrainResult:
    """Train what ``run`` asks for and write ``result.json``; returns at once if it is there.

    Raises TrainingError (for good) and OSError (worth another try).
    """
    done = run.result()
    if done is not None:
        return done
    if run.spec().processes > 1:
        from trainers.run_team import train_together

        return train_together(run)
    return train_here(run, on_step)


def train_here(run: RunFolder, on_step: Callable[[StepEvent], None] | None = None) -> TrainResult:
    """The part of this process, which is all of it unless it belongs to a team."""
    from trainers.backends.team import this_team

    spec, request, team = run.spec(), run.request(), this_team()
    base = base_folder(spec, request)
    copy = KeptCopy.of(run, spec, request) if team.leads else KeptCopy(run, None)
    copy.resume()
    team.wait()

    def record(event: StepEvent) -> None:
        append_line(run.events_file, {**asdict(event), "time": now()})
        if on_step is not None:
            on_step(event)

    def should_stop() -> str | None:
        if run.stop_requested:
            return "asked"
        if request.deadline is not None and now() >= request.deadline:
            return "deadline"
        return None

    name: BackendName = "peft" if team.size > 1 else request.backend
    backend = open_backend(name, allow_cpu=request.allow_cpu)
    result = backend.train(
        spec,
        run.examples("train"),
        run.examples("validation"),
        base,
        run,
        record,
        should_stop,
        copy.keep,
    )
    if team.leads:
        write_atomically(run.result_file, result.model_dump_json(indent=1))
    return result


@dataclass
class KeptCopy:
    """The run's copy in object storage, while it trains; the supervisor adds the result.

    A store that cannot be written to stops no training: what is on this disk is enough unless the
    machine is lost. It is said in the record.
    """

    run: RunFolder
    storage: RunStorage | None

    @classmethod
    def of(cls, run: RunFolder, spec: TrainSpec, request: RunRequest) -> KeptCopy:
        if request.storage is None:
            return cls(run, None)
        store = open_place(request.storage, load_settings().storage)
        return cls(run, RunStorage.of(store, spec.digest))

    def resume(self) -> None:
        self._tried("looking for a checkpoint", lambda storage: storage.pull_checkpoint(self.run))

    def keep(self, folder: Path, step: int) -> None:
        self._tried(
            f"storing the checkpoint of step {step}",
            lambda storage: storage.push_checkpoint(self.run, folder, step),
        )

    def _tried(self, what: str, act: Callable[[RunStorage], object]) -> None:
        if self.storage is None:
            return
        try:
            act(self.storage)
        except ObjectStoreError as error:
            failure = classify(error)
            self.run.note(f"{what} failed ({failure.state}): {failure.message}"[:500])


def base_folder(spec: TrainSpec, request: RunRequest) -> Path:
    """Where the base model lies on this machine; another one than the planner's may have to fetch it.

    Raises TrainingError when it is not to be had, or is not the one that the spec names.
    """
    folder = request.base_folder
    try:
        if not folder.is_dir():
            own = load_settings().engine.model_copy(update={"base_model": spec.base_model})
            folder = prepare_base(own).folder
        present = fingerprint(folder)
    except (ArtifactError, BaseModelError) as error:
        raise TrainingError(str(error), "base_model_unusable") from error
    if present != spec.base_digest:
        raise TrainingError(
            f"base model folder {folder} has fingerprint {present[:12]}, "
            f"the spec asks for {spec.base_digest[:12]}",
            "base_model_unusable",
        )
    return folder


def open_backend(name: BackendName, *, allow_cpu: bool = True) -> TrainingBackend:
    """The backend of that name; ``auto`` is unsloth where there is a GPU and the package, else peft.

    Raises TrainingError when a GPU is asked for (``allow_cpu`` false) and there is none.
    """
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and not allow_cpu:
        raise TrainingError(
            "this worker has no GPU and may not train on CPU: check the GPU driver, "
            "or give the run no GPU (training.gpus_per_run = 0)",
            "gpu_missing",
        )
    if name == "unsloth" or (name == "auto" and gpu and find_spec("unsloth") is not None):
        from trainers.backends.accelerated import AcceleratedBackend

        return AcceleratedBackend(allow_cpu=allow_cpu)
    from trainers.backends.plain import PlainBackend

    return PlainBackend()


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m trainers.run RUN_DIR [--supervised]", file=sys.stderr)
        return EXIT_FAILED
    run = RunFolder(Path(arguments[0]))
    if "--supervised" in arguments[1:]:
        _end_with_parent()
    with run.lock_file.open("a") as lock:
        if not acquire(lock):
            print("another process is training in this folder", file=sys.stderr)
            return EXIT_AGAIN
        return _run(run)


def acquire(lock: IO[str]) -> bool:
    """Take the locked file for this process; the kernel gives it back however the process ends."""
    give_up = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The process of a supervisor that was just killed needs a moment to end.
            if time.monotonic() > give_up:
                return False
            time.sleep(0.1)
        else:
            return True


def _run(run: RunFolder) -> int:
    limit_threads()
    try:
        train(run)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is must reach error.json
        traceback.print_exc()
        failure = classify(error)
        with contextlib.suppress(OSError):  # the disk may be full: the exit code and log remain
            write_atomically(run.error_file, failure.to_json())
        return EXIT_AGAIN if failure.again else EXIT_FAILED
    run.error_file.unlink(missing_ok=True)
    return EXIT_DONE


def limit_threads() -> None:
    # More threads than cores make every step slower: the waiting ones spin.
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))


def _end_with_parent() -> None:
    """End this process group when standard input closes, that is when the supervisor is gone."""

    def wait() -> None:
        os.read(0, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the training libraries may block a normal exit; all that matters is on disk.
    os._exit(code)
