"""The seam between a run and the library that trains. Both backends pass the same contract suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainers.encoding import Example
from trainers.run_folder import RunFolder, TrainResult
from trainers.spec import TrainSpec


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step, as it is written to ``events.jsonl``."""

    step: int
    steps: int
    loss: float
    """Nats per answer token."""
    seconds: float
    tokens: int
    """Tokens of the batch, padding left out."""
    validation_loss: float | None = None


class TrainingBackend(Protocol):
    name: str

    def train(
        self,
        spec: TrainSpec,
        train: Sequence[Example],
        validation: Sequence[Example],
        base: Path,
        run: RunFolder,
        on_step: Callable[[StepEvent], None],
        should_stop: Callable[[], str | None],
        on_checkpoint: Callable[[Path, int], None] = lambda folder, step: None,
    ) -> TrainResult:
        """Train one LoRA adapter into ``run.adapter``; resumes from the last whole checkpoint.

        Args:
            spec: what to train. Same spec, same hardware, same threads: same adapter bytes.
            train, validation: examples; the weights with the lowest validation loss are kept, the
                last ones when there is no validation data.
            base: base model folder.
            run: where checkpoints and the adapter go.
            on_step: called after every optimizer step.
            should_stop: asked after every step; a reason ends the run cleanly.
            on_checkpoint: called with folder and step of every whole checkpoint.

        Raises TrainingError when the spec cannot be trained (no example fits, loss not finite).
        """
        ...
