"""The ``peft`` backend: transformers, PEFT and TRL as they are. Runs on any CPU and on one GPU.

On a CPU the base model is held in bfloat16 where the processor computes in it (about 1.4 times the
speed of float32), the LoRA matrices in float32 as PEFT's default has it, and activations are kept
rather than computed twice: small models fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainers.backends.checkpoints import adapted_layers, layer_count
from trainers.backends.fine_tuning import fine_tune
from trainers.backends.precision import base_precision, begin_alike
from trainers.backends.preparing import prepare, require_targets
from trainers.backends.protocol import StepEvent
from trainers.encoding import Example
from trainers.failures import TrainingError
from trainers.run_folder import RunFolder, TrainResult
from trainers.spec import TrainSpec


class PlainBackend:
    name = "peft"

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
        """See ``TrainingBackend.train``."""
        if spec.load_in_4bit:
            raise TrainingError(
                "4-bit training needs the unsloth backend: set training.backend to unsloth",
                "spec_invalid",
            )
        data = prepare(spec, train, validation, base, run.examples("old"))

        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        begin_alike(spec.seed)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, base_precision(spec.precision)), attn_implementation="sdpa"
        )
        lora = LoraConfig(
            r=spec.lora.rank,
            lora_alpha=spec.lora.alpha,
            lora_dropout=spec.lora.dropout,
            target_modules=list(spec.lora.targets),
            layers_to_transform=adapted_layers(spec, layer_count(model)),
            bias="none",
            use_rslora=spec.lora.rslora,
            task_type="CAUSAL_LM",
        )
        require_targets(model, spec)
        model = get_peft_model(model, lora)
        return fine_tune(
            model,
            AutoTokenizer.from_pretrained(base),
            spec,
            data,
            run,
            on_step,
            should_stop,
            backend=self.name,
            # The weights' own types decide the arithmetic: no automatic casting on top.
            options={"gradient_checkpointing": False, "bf16": False, "fp16": False},
            answers_only=True,
            on_checkpoint=on_checkpoint,
        )
