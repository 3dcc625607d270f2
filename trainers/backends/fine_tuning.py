"""Supervised fine-tuning of a LoRA model that is already built: what both backends share.

The backends differ in how they build the model; order of data, loss, checkpoints, choice of the best
weights and the files written are the same. Imported only by worker processes, after the backend
has imported its library.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.backends.checkpoints import BestWeights, last_checkpoint, seal_checkpoint
from trainers.backends.protocol import StepEvent
from trainers.encoding import (
    Encoded,
    Example,
    TrainingError,
    deal_wrong_answers,
    encode,
    load_tokenizer,
    plan_batches,
)
from trainers.run_folder import RunFolder, TrainResult, now
from trainers.spec import TrainSpec

MAX_VALIDATION_EXAMPLES = 64
"""The best step is chosen on this many; judging uses the whole split later."""
_RECENT_STEPS = 10
_LIBRARIES = ("torch", "transformers", "peft", "trl", "unsloth", "unsloth_zoo")


@dataclass(frozen=True)
class Prepared:
    """The data of a run as token ids."""

    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    plan: list[int]
    """Indices into ``train``, in the order in which they are seen."""
    too_long: int


def prepare(
    spec: TrainSpec, train: Sequence[Example], validation: Sequence[Example], base: Path
) -> Prepared:
    """Encode both splits and fix the order of the batches. Raises TrainingError."""
    if spec.shuffle_answers:
        train, validation = deal_wrong_answers((train, validation), spec.seed)
    tokenizer, form = load_tokenizer(base), spec.prompt_format
    encoded = encode(train, tokenizer, form, spec.max_sequence_tokens)
    if not encoded.examples:
        raise TrainingError(
            f"none of {len(train)} training examples fits {spec.max_sequence_tokens} tokens: "
            "raise training.max_sequence_tokens"
        )
    held = encode(
        validation[:MAX_VALIDATION_EXAMPLES], tokenizer, form, spec.max_sequence_tokens
    ).examples
    lengths = [len(example) for example in encoded.examples]
    plan = plan_batches(lengths, spec.batch_size, spec.steps, spec.seed)
    return Prepared(encoded.examples, tuple(sorted(held, key=len)), plan, too_long=encoded.too_long)


def fine_tune(
    model: Any,
    processing_class: Any,
    spec: TrainSpec,
    data: Prepared,
    run: RunFolder,
    on_step: Callable[[StepEvent], None],
    should_stop: Callable[[], str | None],
    *,
    backend: str,
    options: dict[str, Any],
) -> TrainResult:
    """Train ``model`` (a PEFT model) and write the kept weights to ``run.adapter``.

    Args:
        options: further SFTConfig arguments of the backend.

    Raises TrainingError when the loss stops being a finite number.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer

    def rows(examples: Sequence[Encoded]) -> Any:
        return Dataset.from_dict(
            {
                "input_ids": [example.input_ids for example in examples],
                "labels": [example.labels for example in examples],
            }
        )

    arguments = SFTConfig(
        output_dir=str(run.checkpoints),
        # The plan already holds every step's batch in order, so one epoch over it is the whole run.
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=int(spec.warmup_share * spec.steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if data.validation else "no",
        eval_steps=spec.checkpoint_steps,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=spec.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        seed=spec.seed,
        data_seed=spec.seed,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **options,
    )
    best = BestWeights(run.best)
    watch = _callback(model, spec, best, on_step, should_stop)
    trainer = _trainer_class(SFTTrainer)(
        model=model,
        processing_class=processing_class,
        args=arguments,
        train_dataset=rows(data.train).select(data.plan),
        eval_dataset=rows(data.validation) if data.validation else None,
        callbacks=[watch],
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    watch.batch_tokens = lambda: trainer.batch_tokens
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(run.checkpoints))
    if data.validation and not watch.stopped and best.step != trainer.state.global_step:
        trainer.evaluate()
    if best.loss is None:
        best.keep(model, spec, trainer.state.global_step, None)
    publish(run.best, run.adapter)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    recent = losses[-_RECENT_STEPS:]
    return TrainResult(
        backend=backend,
        steps=trainer.state.global_step,
        kept_step=best.step,
        loss=sum(recent) / len(recent) if recent else math.nan,
        validation_loss=best.loss,
        stopped=watch.stopped,
        seconds=time.monotonic() - started,
        examples=len(data.train),
        too_long=data.too_long,
        finished=now(),
        libraries=_versions(),
    )


def publish(best: Path, adapter: Path) -> None:
    """Put the payload of ``best`` at ``adapter``, whole or not at all."""
    scratch = adapter.with_name(".adapter-scratch")
    for folder in (scratch, adapter):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)
    for path in best.glob("adapter_*"):
        os.link(path, scratch / path.name)
    scratch.rename(adapter)


def _trainer_class(parent: Any) -> Any:
    # Made at run time: one backend replaces the parent class when it is imported.
    class Trainer(parent):
        batch_tokens = 0

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.batch_tokens = int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *args, **kwargs)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Packaging writes the card; checkpoints need none."""

    return Trainer


def _callback(
    model: Any,
    spec: TrainSpec,
    best: BestWeights,
    on_step: Callable[[StepEvent], None],
    should_stop: Callable[[], str | None],
) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Reports steps, keeps the best weights, seals checkpoints, ends the run when asked."""

        stopped: str | None = None
        batch_tokens: Callable[[], int]
        _clock = time.monotonic()
        _last: StepEvent | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._clock = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            reason = should_stop()
            if reason and state.global_step < spec.steps:
                self.stopped = reason
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in (logs or {}):
                return
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {state.global_step}: lower training.learning_rate"
                )
            seconds = time.monotonic() - self._clock
            self._last = StepEvent(
                state.global_step, spec.steps, loss, seconds, self.batch_tokens()
            )
            on_step(self._last)

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
        ) -> None:
            loss = float(metrics["eval_loss"])
            if math.isfinite(loss) and (best.loss is None or loss < best.loss):
                best.keep(model, spec, state.global_step, loss)
            if self._last is not None:
                on_step(
                    StepEvent(
                        self._last.step,
                        self._last.steps,
                        self._last.loss,
                        self._last.seconds,
                        0,
                        validation_loss=loss,
                    )
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Watch()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
