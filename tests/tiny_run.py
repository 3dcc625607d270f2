"""Small training runs on the tiny model, for the tests of trainers, executors and flows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.artifacts.base import fingerprint
from infra.prompting.template import PRUNED
from tests.tiny_model import tool_examples
from trainers.run_folder import RunFolder, RunRequest
from trainers.spec import LoraSpec, TrainSpec


def tiny_spec(base: Path, **changes: Any) -> TrainSpec:
    values = {
        "task_id": "lights",
        "base_model": "tiny",
        "base_digest": fingerprint(base),
        "dataset_digest": "d" * 64,
        "lora": LoraSpec(rank=4, alpha=8),
        "format": PRUNED.to_dict(),
        "steps": 12,
        "batch_size": 4,
        "checkpoint_steps": 4,
        "learning_rate": 0.01,
        "max_sequence_tokens": 128,
    }
    return TrainSpec.model_validate({**values, **changes})


def tiny_run(
    path: Path, base: Path, *, request: dict[str, Any] | None = None, **spec: Any
) -> RunFolder:
    """A run folder ready to train: 40 examples, 8 to validate on."""
    examples = tool_examples(48)
    return RunFolder.create(
        path,
        tiny_spec(base, **spec),
        RunRequest.model_validate({"base_folder": base, "backend": "peft", **(request or {})}),
        examples[:40],
        examples[40:],
    )


@contextmanager
def training_process(run: RunFolder, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m trainers.run`` on the folder; killed at the end if it still runs."""
    with run.log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.run", str(run.path)],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def train_to_end(run: RunFolder, timeout_seconds: float = 240, **environment: str) -> int:
    """The exit code of a training process that ran to its end."""
    with training_process(run, **environment) as process:
        return process.wait(timeout_seconds)


def wait_until(condition: Callable[[], object], timeout_seconds: float = 180) -> None:
    """Poll until the condition holds; AssertionError when it never does."""
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def checkpoint_sealed(run: RunFolder) -> bool:
    return any(run.checkpoints.glob("checkpoint-*/sealed"))
