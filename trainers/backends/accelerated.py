"""The ``unsloth`` backend, for GPUs. An optional extra, always in a process of its own.

Unsloth replaces parts of transformers, TRL and torch when it is imported, so it must be imported
before them and never into a process that does anything else. Parts of it are under the AGPL; it is
not part of this project and is not installed by default. Its CPU mode trains for real, which is how
the tests run this very code without a GPU; workers that must not fall back to it say so
(``allow_cpu`` false).
"""

from __future__ import annotations

import os
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


class AcceleratedBackend:
    name = "unsloth"

    def __init__(self, *, allow_cpu: bool = True) -> None:
        # Read when the library is imported. The statistics switch keeps it from calling home.
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        if not allow_cpu:
            os.environ["UNSLOTH_DISABLE_CPU_FALLBACK"] = "1"

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
        data = prepare(spec, train, validation, base, run.examples("old"))
        # Where it keeps the code that it generates: not in the working directory.
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(run.path / "compiled"))
        FastLanguageModel = _load_library()

        import torch

        on_gpu = torch.cuda.is_available()
        bf16 = on_gpu and torch.cuda.is_bf16_supported()
        refuse_fp32(spec, bf16)
        begin_alike(spec.seed)
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(base),
            max_seq_length=spec.max_sequence_tokens,
            dtype=getattr(torch, base_precision(spec.precision)),
            # Its default is 4 bit, in which the adapter learns on a base a little other than served.
            load_in_4bit=spec.load_in_4bit,
        )
        require_targets(model, spec)
        model = FastLanguageModel.get_peft_model(
            model,
            r=spec.lora.rank,
            lora_alpha=spec.lora.alpha,
            lora_dropout=spec.lora.dropout,
            target_modules=list(spec.lora.targets),
            layers_to_transform=adapted_layers(spec, layer_count(model)),
            bias="none",
            use_rslora=spec.lora.rslora,
            use_gradient_checkpointing="unsloth" if on_gpu else False,
            random_state=spec.seed,
        )
        # Unsloth brings its own fused loss behind the standard one.
        options: dict[str, Any] = {"loss_type": "nll", "fp16": False}
        options["bf16"] = bf16
        if on_gpu and spec.batching == "packed":
            # Its GPU attention does not see from the positions where an example begins, as that of
            # transformers does: only in rows that it packs itself are examples kept apart.
            options["padding_free"] = True
        return fine_tune(
            model,
            tokenizer,
            spec,
            data,
            run,
            on_step,
            should_stop,
            backend=self.name,
            options=options,
            answers_only=False,
            on_checkpoint=on_checkpoint,
            before_probes=_return_logits,
        )


def refuse_fp32(spec: TrainSpec, bf16: bool) -> None:
    """Raises TrainingError where the library would compute in bf16 whatever the spec asks for."""
    if bf16 and spec.precision == "fp32":
        raise TrainingError(
            "unsloth computes in bf16 on this GPU and cannot be held to fp32: leave the precision to "
            "'auto', or set training.backend to peft",
            "spec_invalid",
        )


def _return_logits() -> None:
    """The library leaves them out otherwise; reads this at every call."""
    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"


def _load_library() -> Any:
    try:
        from unsloth import FastLanguageModel
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"the unsloth backend needs the package {error.name}: install the optional packages "
            "of infra/without-dependencies.txt, or set training.backend to peft",
            "library_missing",
        ) from error
    except NotImplementedError as error:
        raise TrainingError(
            "the unsloth backend found no GPU and this worker may not train on CPU: "
            "check the GPU driver, or set training.backend to peft",
            "gpu_missing",
        ) from error
    return FastLanguageModel
