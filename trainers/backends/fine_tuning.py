"""Supervised fine-tuning of a LoRA model that is already built: what both backends share.

The backends differ in how they build the model; order of data, loss, checkpoints, choice of the best
weights and the files written are the same. Imported only by worker processes, after the backend
has imported its library.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainers.backends.answer_loss import answer_loss, pack
from trainers.backends.checkpoints import BestWeights, last_checkpoint
from trainers.backends.preparing import Prepared
from trainers.backends.probing import probe
from trainers.backends.protocol import StepEvent
from trainers.backends.team import this_team
from trainers.backends.watching import make_watch
from trainers.encoding import Encoded
from trainers.failures import TrainingError, is_out_of_memory
from trainers.run_folder import Probe, RunFolder, TrainResult, now
from trainers.spec import TrainSpec

_RECENT_STEPS = 10
_LIBRARIES = ("torch", "transformers", "peft", "trl", "unsloth", "unsloth_zoo")
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "adafactor": "adafactor"}


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
    answers_only: bool,
    on_checkpoint: Callable[[Path, int], None] = lambda folder, step: None,
    before_probes: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Train ``model`` (a PEFT model) and write the kept weights to ``run.adapter``.

    Out of memory, the number of examples computed at once is halved and the run goes on from its
    last checkpoint; the optimizer's steps stay the same up to rounding.

    Args:
        options: further SFTConfig arguments of the backend.
        answers_only: compute logits for the answers alone (``answer_loss``).
        on_checkpoint: called with each sealed checkpoint.
        before_probes: called once trained, before the model is asked for logits.

    Raises TrainingError when the loss stops being a finite number, or one example needs more memory
    than there is.
    """
    best, team = BestWeights(run.best), this_team()
    start = _keep_start(model, run.path / "start.safetensors") if team.size == 1 else None
    started = time.monotonic()
    while True:
        watch = make_watch(
            model,
            spec,
            best,
            on_step,
            should_stop,
            pause_step=run.request().pause_step,
            on_checkpoint=on_checkpoint,
            team=team,
        )
        share = spec.batch_size // team.size
        trainer = _trainer(
            model,
            processing_class,
            spec,
            data,
            run,
            watch,
            (share, _at_once(share, run.micro_batch())),
            options,
            answers_only,
        )
        checkpoint = team.agreed(last_checkpoint(run.checkpoints) if team.leads else None)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except Exception as error:
            if start is None or not is_out_of_memory(error):
                raise  # of a team, whoever started it halves and starts it anew
            # What the error holds is the memory that the next try needs.
            error.__traceback__ = None
            if run.halve_micro_batch("out of memory") is None:
                raise TrainingError(
                    "a single example needs more memory than there is: lower "
                    "training.max_sequence_tokens, or take a smaller base model",
                    "out_of_memory",
                ) from error
        else:
            break
        del trainer, watch
        _free()
        _restore(model, start)
        best = BestWeights(run.best)
    if (
        data.validation
        and not watch.stopped
        and team.agreed(best.step) != trainer.state.global_step
    ):
        trainer.evaluate()
    if team.leads:
        if best.loss is None:
            best.keep(model, spec, trainer.state.global_step, None)
        publish(run.best, run.adapter)
    before_probes()
    probes = _probed(model, run, data) if team.leads else ()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    recent = losses[-_RECENT_STEPS:]
    seconds = time.monotonic() - started
    return TrainResult(
        backend=backend,
        steps=trainer.state.global_step,
        kept_step=best.step,
        loss=sum(recent) / len(recent) if recent else math.nan,
        validation_loss=best.loss,
        stopped=watch.stopped,
        seconds=seconds,
        tokens=watch.tokens,
        tokens_per_second=watch.tokens / seconds if watch.tokens else None,
        peak_memory_bytes=_peak_memory(),
        micro_batch=run.micro_batch(),
        processes=team.size,
        answer_bytes_per_token=data.answer_bytes_per_token,
        notes=tuple(run.notes()[-20:]),
        examples=len(data.train),
        too_long=data.too_long,
        finished=now(),
        libraries=_versions(),
        probes=probes,
    )


def _probed(model: Any, run: RunFolder, data: Prepared) -> tuple[Probe, ...]:
    try:
        return probe(model, run.best, data.tokenizer, data.probes)
    except Exception as error:  # noqa: BLE001  the adapter is whole without them
        run.note(f"the engine will not be compared with the trainer: {type(error).__name__}")
        return ()


def _trainer(
    model: Any,
    processing_class: Any,
    spec: TrainSpec,
    data: Prepared,
    run: RunFolder,
    watch: Any,
    batch: tuple[int, int],
    options: dict[str, Any],
    answers_only: bool,
) -> Any:
    import torch
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

    share, micro = batch
    arguments = SFTConfig(
        output_dir=str(run.checkpoints),
        # The plan already holds every step's batch in order, so one epoch over it is the whole run.
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        per_device_eval_batch_size=micro,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=int(spec.warmup_share * spec.steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_gradient_norm,
        optim=_OPTIMIZERS[spec.optimizer],
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
        ddp_find_unused_parameters=False,
        # Of several processes without a GPU the library takes no notice unless it is told.
        use_cpu=share < spec.batch_size and not torch.cuda.is_available(),
        **options,
    )
    trainer = _trainer_class(SFTTrainer, answers_only)(
        model=model,
        processing_class=processing_class,
        args=arguments,
        train_dataset=rows(data.train).select(data.plan),
        eval_dataset=rows(data.validation) if data.validation else None,
        data_collator=None if spec.batching != "packed" or options.get("padding_free") else pack,
        callbacks=[watch],
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    watch.batch_tokens = trainer.take_tokens
    return trainer


def publish(best: Path, adapter: Path) -> None:
    """Put the payload of ``best`` at ``adapter``, whole or not at all."""
    scratch = adapter.with_name(".adapter-scratch")
    for folder in (scratch, adapter):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)
    for path in best.glob("adapter_*"):
        os.link(path, scratch / path.name)
    scratch.rename(adapter)


def _trainer_class(parent: Any, answers_only: bool) -> Any:
    # Made at run time: one backend replaces the parent class when it is imported.
    class Trainer(parent):
        _seen = 0

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            self._seen += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().training_step(model, inputs, *args, **kwargs)

        def take_tokens(self) -> int:
            """Tokens computed since the last call, in this process."""
            seen, self._seen = self._seen, 0
            return seen

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            if not answers_only or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = answer_loss(model, inputs, num_items_in_batch)
            # Divided by the tokens of all processes, whose gradients are then averaged.
            return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

        def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            if not answers_only:
                return super().prediction_step(model, inputs, *args, **kwargs)
            with torch.no_grad():
                return answer_loss(model, self._prepare_inputs(inputs)).detach(), None, None

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Packaging writes the card; checkpoints need none."""

    return Trainer


def _at_once(share: int, limit: int | None) -> int:
    """How many of its share of a step's examples a process computes at once: all, or what divides them."""
    most = min(share, limit or share)
    return next(count for count in range(most, 0, -1) if share % count == 0)


def _keep_start(model: Any, path: Path) -> Path:
    """Put the weights that are trained, as they are now, on disk: memory is for the steps."""
    from safetensors.torch import save_file

    scratch = path.with_name(f".{path.name}")
    save_file(
        {
            name: parameter.detach().to("cpu").contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        },
        str(scratch),
    )
    scratch.replace(path)
    return path


def _restore(model: Any, start: Path) -> None:
    import torch
    from safetensors.torch import load_file

    kept = load_file(str(start))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.copy_(kept[name])
                parameter.grad = None


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
