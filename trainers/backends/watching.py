"""What is done between the steps of a run: report, keep the best, seal, stop. Worker processes only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainers.backends.checkpoints import BestWeights, seal_checkpoint
from trainers.backends.protocol import StepEvent
from trainers.backends.team import Team
from trainers.failures import TrainingError
from trainers.spec import TrainSpec


def make_watch(
    model: Any,
    spec: TrainSpec,
    best: BestWeights,
    on_step: Callable[[StepEvent], None],
    should_stop: Callable[[], str | None],
    *,
    pause_step: int | None,
    on_checkpoint: Callable[[Path, int], None],
    team: Team,
) -> Any:
    """A TrainerCallback. Of a team only the leader reports and writes, and its word holds for all.

    Args:
        pause_step: stop there with a checkpoint, to be gone on with.
        on_checkpoint: called with the folder and step of each sealed checkpoint.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        stopped: str | None = None
        batch_tokens: Callable[[], int]
        tokens = 0
        _clock = time.monotonic()
        _last: StepEvent | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._clock = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            reason = team.agreed(should_stop())
            if reason is None and pause_step is not None and state.global_step >= pause_step:
                reason = "paused"
                control.should_save = control.should_evaluate = True
            if reason and state.global_step < spec.steps:
                self.stopped = reason
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in (logs or {}):
                return
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {state.global_step}: lower training.learning_rate",
                    "loss_not_finite",
                )
            seconds, tokens = time.monotonic() - self._clock, team.total(self.batch_tokens())
            self.tokens += tokens
            self._last = StepEvent(state.global_step, spec.steps, loss, seconds, tokens)
            if team.leads:
                on_step(self._last)

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
        ) -> None:
            loss = float(metrics["eval_loss"])
            better = math.isfinite(loss) and (best.loss is None or loss < best.loss)
            if team.leads and better:
                best.keep(model, spec, state.global_step, loss)
            if team.leads and self._last is not None:
                last = self._last
                on_step(
                    StepEvent(
                        last.step, last.steps, last.loss, last.seconds, 0, validation_loss=loss
                    )
                )
            if team.agreed(self._stale(state.global_step)) and state.global_step < spec.steps:
                self.stopped = self.stopped or "converged"
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            team.wait()  # each process writes a file of its own there
            if not team.leads:
                return
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seal_checkpoint(folder)
            on_checkpoint(folder, state.global_step)

        def _stale(self, step: int) -> bool:
            # Counted from what is on disk, so that a resumed run ends where an undisturbed one does.
            if spec.patience is None or best.loss is None:
                return False
            return step - best.step >= spec.patience * spec.checkpoint_steps

    return Watch()
