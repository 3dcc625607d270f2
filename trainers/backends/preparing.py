"""A run's examples as token ids in the order of training, and what its base model must have."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infra.prompting.template import render_answer
from trainers.backends.probing import MAX_PROBES
from trainers.data_sets.labels import prompt_key
from trainers.encoding import (
    Encoded,
    Example,
    deal_wrong_answers,
    encode,
    load_tokenizer,
    plan_batches,
)
from trainers.failures import TrainingError
from trainers.spec import TrainSpec

MAX_VALIDATION_EXAMPLES = 64
"""The best step is chosen on this many; judging uses the whole split later."""


@dataclass(frozen=True)
class Prepared:
    """The data of a run as token ids."""

    train: tuple[Encoded, ...]
    """Of this data set, then of earlier ones."""
    validation: tuple[Encoded, ...]
    plan: list[int]
    """Indices into ``train``, in the order in which they are seen."""
    too_long: int
    answer_bytes_per_token: float | None
    """Of the validation answers."""
    probes: tuple[tuple[str, Encoded], ...]
    """Prompt key and example of some validation rows, see ``probing``."""
    tokenizer: Any


def prepare(
    spec: TrainSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    base: Path,
    old: Sequence[Example] = (),
) -> Prepared:
    """Encode both splits and fix the order of the batches.

    Args:
        old: examples of ``spec.old_datasets``.

    Raises TrainingError: nothing to train on, nothing that fits, or a base without turn tokens.
    """
    require_optimizer(spec)
    if not train:
        raise TrainingError(
            "the training split is empty: no call has a usable answer", "empty_split"
        )
    train = _share(train, spec)
    if spec.shuffle_answers:
        train, validation = deal_wrong_answers((train, validation), spec.seed)
    tokenizer, form = load_tokenizer(base), spec.prompt_format
    longest = min(spec.max_sequence_tokens, context_tokens(base) or spec.max_sequence_tokens)
    encoded = encode(train, tokenizer, form, longest)
    if not encoded.examples:
        raise TrainingError(
            f"none of {len(train)} training examples fits {longest} tokens: raise "
            "training.max_sequence_tokens, or use a base model with a longer context",
            "examples_too_long",
        )
    mixed = encode(old, tokenizer, form, longest).examples if spec.old_share and old else ()
    chosen = validation[:MAX_VALIDATION_EXAMPLES]
    held = encode(chosen, tokenizer, form, longest)
    examples = (*encoded.examples, *mixed)
    plan = plan_batches(
        [len(example) for example in examples],
        spec.batch_size,
        spec.steps,
        spec.seed,
        old=len(mixed),
        old_share=spec.old_share,
        grouped=spec.batching != "shuffled",
    )
    return Prepared(
        examples,
        tuple(sorted(held.examples, key=len)),
        plan,
        encoded.too_long,
        _bytes_per_token(chosen, held.examples) if not held.too_long else None,
        tuple(
            (prompt_key(example["request"]), encoded)
            for example in chosen[:MAX_PROBES]
            for encoded in encode([example], tokenizer, form, longest).examples
        ),
        tokenizer,
    )


def context_tokens(base: Path) -> int | None:
    """The longest sequence that the base model was made for; None when it does not say."""
    config = json.loads((base / "config.json").read_text())
    config = config.get("text_config") or config
    found = config.get("max_position_embeddings")
    return int(found) if found else None


def require_targets(model: Any, spec: TrainSpec) -> None:
    """Raises TrainingError when the base model lacks a module that LoRA is to adapt."""
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = sorted(set(spec.lora.targets) - present)
    if missing:
        linear = sorted(
            {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if type(module).__name__ in ("Linear", "Conv1D") and "." in name
            }
        )
        raise TrainingError(
            f"the base model has no module {', '.join(missing)} to adapt; "
            f"it has {', '.join(linear) or 'none that LoRA takes'}",
            "target_modules_missing",
        )


def require_optimizer(spec: TrainSpec) -> None:
    """Raises TrainingError when the optimizer's package is not here."""
    if spec.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise TrainingError(
            "the optimizer adamw_8bit needs the package bitsandbytes: install it on the workers, "
            "or set training.optimizer to adamw or adafactor",
            "library_missing",
        )


def _share(train: Sequence[Example], spec: TrainSpec) -> Sequence[Example]:
    if spec.data_share == 1:
        return train
    count = max(1, round(len(train) * spec.data_share))
    chosen = random.Random(spec.seed).sample(range(len(train)), count)
    return [train[index] for index in sorted(chosen)]


def _bytes_per_token(validation: Sequence[Example], encoded: Sequence[Encoded]) -> float | None:
    tokens = sum(len(example.completion) for example in encoded)
    if not tokens:
        return None
    return sum(len(render_answer(example["answer"]).encode()) for example in validation) / tokens
