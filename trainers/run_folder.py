"""The folder of one training run: what was asked, how far it is, what came out.

``spec.json``, ``request.json``, ``train.jsonl``, ``validation.jsonl``, ``old.jsonl`` go in;
``events.jsonl``, ``checkpoints/``, ``adapter/`` and then ``result.json`` or ``error.json`` come out. A
machine that does not see the folder takes the run up from object storage (``run_storage``). It is read
here without torch, by executors and command line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.files import write_atomically
from trainers.failures import Failure
from trainers.spec import TrainSpec

BackendName = Literal["auto", "peft", "unsloth"]
_TAIL_BYTES = 64 << 10
_RECENT_STEPS = 10


class StoragePlace(BaseModel):
    """An object store without its keys, which each worker takes from its own settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    endpoint_url: str | None = None
    region: str | None = None


class RunRequest(BaseModel):
    """How a run is to be carried out, beside its spec; does not change what is learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_folder: Path
    backend: BackendName = "auto"
    deadline: float | None = Field(None, description="Seconds since the epoch: stop, keep the best")
    allow_cpu: bool = Field(True, description="False: a worker without a GPU fails, not crawls")
    cpus_per_process: float = Field(1, gt=0, description="Of each of a team's processes")
    gpus_per_process: float = Field(0, ge=0, description="Of each of a team's processes")
    pause_step: int | None = Field(None, ge=1, description="Stop here for now, to be gone on with")
    storage: StoragePlace | None = Field(
        None, description="Where checkpoints are kept besides here"
    )
    submitted: float = Field(
        0, description="Seconds since the epoch; of two requests the later holds"
    )


class Probe(BaseModel):
    """The beginning of one greedy answer."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    """``prompt_key`` of the request."""
    text: str
    """What the answer begins with."""
    log_probabilities: tuple[float, ...]
    """Of its first tokens in order, natural; it may be one more than ``text`` holds."""


class TrainResult(BaseModel):
    """What a finished run reports. ``adapter/`` of the run folder holds the weights."""

    model_config = ConfigDict(extra="allow", frozen=True)

    backend: str
    steps: int
    """Optimizer steps done."""
    kept_step: int
    """The step whose weights were kept: lowest validation loss, or the last."""
    loss: float
    """Mean training loss of the last steps, nats per answer token."""
    validation_loss: float | None = None
    stopped: str | None = None
    """Why it ended before its last step: ``deadline``, ``asked``, ``paused`` or ``converged``."""
    seconds: float
    """Training time of the last attempt, seconds."""
    tokens: int = 0
    """Tokens of all steps of the last attempt, padding left out."""
    tokens_per_second: float | None = None
    """Over the steps of the last attempt, checkpoints and validation included."""
    peak_memory_bytes: int | None = None
    micro_batch: int | None = None
    """Examples that each process computed at once, where memory did not hold its whole part of a step."""
    processes: int = 1
    """That trained together."""
    answer_bytes_per_token: float | None = None
    """Of the validation answers: makes losses of different tokenizers comparable."""
    notes: tuple[str, ...] = ()
    examples: int
    too_long: int
    finished: float
    """Seconds since the epoch."""
    libraries: dict[str, str] = Field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    """What the kept weights say of some validation prompts, for the judge to compare the engine with."""


@dataclass(frozen=True)
class Progress:
    step: int
    steps: int
    loss: float | None = None
    seconds_per_step: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    """Over the last steps, padding left out."""

    @property
    def seconds_left(self) -> float | None:
        if self.seconds_per_step is None:
            return None
        return self.seconds_per_step * (self.steps - self.step)


class RunFolder:
    """Names, reads and writes of one run folder. Writes are atomic; flags are empty files."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self.spec_file = self.path / "spec.json"
        self.request_file = self.path / "request.json"
        self.events_file = self.path / "events.jsonl"
        self.attempts_file = self.path / "attempts.jsonl"
        self.result_file = self.path / "result.json"
        self.error_file = self.path / "error.json"
        self.log_file = self.path / "output.log"
        self.lock_file = self.path / "lock"
        self.leader_lock_file = self.path / "leader-lock"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.adapter = self.path / "adapter"
        self.mark = self.path / ".nightschool-run"
        self.micro_batch_file = self.path / "micro-batch.json"
        self.begun = self.path / "begun"
        self._stop = self.path / "stop"
        self._cancel = self.path / "cancel"

    @classmethod
    def create(
        cls,
        path: Path,
        spec: TrainSpec,
        request: RunRequest,
        train: Iterable[Mapping[str, Any]],
        validation: Iterable[Mapping[str, Any]] = (),
        old: Iterable[Mapping[str, Any]] = (),
    ) -> RunFolder:
        """Write the inputs of a run; one that is there already (same spec) keeps its progress.

        Args:
            train, validation: ``{"request": ..., "answer": ...}`` mappings.
            old: examples of earlier data sets, see ``TrainSpec.old_share``.

        Raises ValueError when the folder belongs to another spec.
        """
        folder = cls(path)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.mark.touch()
        if folder.spec_file.exists():
            present = folder.spec()
            if present.digest != spec.digest:
                raise ValueError(
                    f"{path} is the run of spec {present.digest[:12]}, not {spec.digest[:12]}: "
                    "use one folder per spec"
                )
        else:
            for name, examples in (("train", train), ("validation", validation), ("old", old)):
                lines = (
                    json.dumps({"request": item["request"], "answer": item["answer"]}) + "\n"
                    for item in examples
                )
                write_atomically(folder.path / f"{name}.jsonl", "".join(lines))
            # Last, so that a folder with a spec has its data.
            write_atomically(folder.spec_file, spec.model_dump_json(indent=1))
        folder.ask(request)
        return folder

    def ask(self, request: RunRequest) -> None:
        """Carry it out so from now on; the result of a pause elsewhere goes."""
        done = self.result()
        if done is not None and done.stopped == "paused" and done.steps != request.pause_step:
            self.result_file.unlink(missing_ok=True)
        # Last: a kill in between must leave a request that still differs.
        write_atomically(self.request_file, request.model_dump_json(indent=1))

    @property
    def is_run(self) -> bool:
        """Whether this is the folder of a run: it carries our mark, or (of earlier releases) a spec."""
        if self.path.is_symlink() or not self.path.is_dir():
            return False
        if self.mark.exists():
            return True
        try:
            return "dataset_digest" in json.loads(self.spec_file.read_text())
        except (OSError, ValueError, TypeError):
            return False

    def spec(self) -> TrainSpec:
        return TrainSpec.model_validate_json(self.spec_file.read_text())

    def request(self) -> RunRequest:
        return RunRequest.model_validate_json(self.request_file.read_text())

    def examples(self, name: Literal["train", "validation", "old"]) -> list[dict[str, Any]]:
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            return []
        with path.open() as stream:
            return [json.loads(line) for line in stream]

    def result(self) -> TrainResult | None:
        if not self.result_file.exists():
            return None
        return TrainResult.model_validate_json(self.result_file.read_text())

    def failure(self) -> Failure | None:
        """The named state of a run that failed by itself; None when it did not."""
        try:
            return Failure.from_json(self.error_file.read_text())
        except FileNotFoundError:
            return None

    def error(self) -> str | None:
        """The message of a run that failed by itself; None when it did not."""
        failure = self.failure()
        return failure.message if failure else None

    def micro_batch(self) -> int | None:
        """Examples that each process computes at once, where memory did not hold its whole part of a
        step; None: all of them."""
        try:
            return int(json.loads(self.micro_batch_file.read_text())["examples"])
        except FileNotFoundError:
            return None

    def halve_micro_batch(self, why: str) -> int | None:
        """Halve what is computed at once, and say so in the record; None when it is one already.

        The optimizer still steps over ``spec.batch_size`` examples, by adding up gradients.
        """
        spec = self.spec()
        share = spec.batch_size // spec.processes
        present = min(self.micro_batch() or share, share)
        smaller = next((n for n in range(present // 2, 0, -1) if share % n == 0), None)
        if smaller is None:
            return None
        text = json.dumps({"examples": smaller, "why": why, "time": now()})
        write_atomically(self.micro_batch_file, text)
        where = " in each process" if spec.processes > 1 else ""
        self.note(f"{why}: {smaller} examples at once instead of {present}{where} from here on")
        return smaller

    def note(self, text: str) -> None:
        """A line for the record, beside the steps."""
        append_line(self.events_file, {"note": text, "time": now()})

    def notes(self) -> list[str]:
        """What was noted lately, oldest first."""
        return [event["note"] for event in read_tail(self.events_file) if "note" in event]

    def progress(self) -> Progress:
        """How far the run is, from the end of ``events.jsonl``; step 0 before the first event."""
        return progress_of(read_tail(self.events_file), self.spec().steps)

    def request_stop(self) -> None:
        """Ask the run to end after its present step and keep the best so far."""
        self._stop.touch()

    def request_cancel(self) -> None:
        """Ask whoever supervises the run to end it at once; its checkpoints stay."""
        self._cancel.touch()

    @property
    def stop_requested(self) -> bool:
        return self._stop.exists()

    @property
    def cancel_requested(self) -> bool:
        return self._cancel.exists()

    def renew(self) -> None:
        """Forget flags, errors and attempts of earlier submissions; keeps checkpoints and results."""
        for path in (self._stop, self._cancel, self.error_file, self.attempts_file):
            path.unlink(missing_ok=True)

    def attempts(self) -> list[dict[str, Any]]:
        """One entry per process started since the last submission, oldest first."""
        return read_tail(self.attempts_file)


def progress_of(events: Sequence[Mapping[str, Any]], steps: int) -> Progress:
    """How far a run of ``steps`` is by the last lines of its events."""
    last = next((event for event in reversed(events) if "loss" in event), None)
    if last is None:
        return Progress(0, steps)
    recent = [e for e in events if "seconds" in e and e.get("tokens") != 0][-_RECENT_STEPS:]
    seconds = sum(event["seconds"] for event in recent)
    tokens = sum(event.get("tokens", 0) for event in recent)
    checked = [event for event in events if event.get("validation_loss") is not None]
    return Progress(
        step=last["step"],
        steps=last["steps"],
        loss=last["loss"],
        seconds_per_step=seconds / len(recent) if recent else None,
        validation_loss=checked[-1]["validation_loss"] if checked else None,
        tokens_per_second=tokens / seconds if tokens and seconds else None,
    )


def begun_before(runs: Path, spec: TrainSpec) -> TrainSpec | None:
    """The spec of the newest run in ``runs`` that differs from ``spec`` in its steps at most."""
    folders = []
    for path in runs.glob("*/spec.json"):
        with suppress(FileNotFoundError):  # housekeeping takes it away
            folders.append((path.stat().st_mtime, RunFolder(path.parent)))
    for _, folder in sorted(folders, key=lambda one: one[0], reverse=True):
        try:
            found = folder.spec()
        except (FileNotFoundError, ValueError):
            continue  # just gone, or of another release
        if found.model_copy(update={"steps": spec.steps}) == spec:
            return found
    return None


def append_line(path: Path, event: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write, so that a reader sees it whole or not at all."""
    with path.open("ab", buffering=0) as stream:
        stream.write((json.dumps(event) + "\n").encode())


def read_tail(path: Path) -> list[dict[str, Any]]:
    """The JSON lines in the last 64 KiB of a file; half-written lines are passed over."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL_BYTES))
        lines = stream.read().split(b"\n")
    if size > _TAIL_BYTES:
        lines = lines[1:]
    events: list[dict[str, Any]] = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
