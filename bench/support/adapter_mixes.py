"""One batch of rows that mixes 0, 1, 4, ... adapters: on the embedded engine's decoder, and in PEFT.

Same weights, same precision, one thread, same number of tokens. The mixes take turns, and processor
time is counted, so that other work on the machine does not decide; what counts is the ratio to the
same side's base-only batch. That the answers are the same is for the contract suite to show.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.support.random_adapters import RANK, Named

PROMPT_TOKENS = 32
Run = Callable[[int], "Spent"]
"""From the number of adapters in the mix to what it took."""


@dataclass(frozen=True)
class Plan:
    rows: int
    tokens: int
    mixes: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class Spent:
    """Processor seconds."""

    whole: float
    decoding: float
    """Without the prompts."""


def measure(sides: dict[str, Run], plan: Plan) -> dict[str, Any]:
    """Tokens per processor second of each side and mix, and its ratio to that side's base only."""
    mixes = (0, *plan.mixes)
    spent: dict[tuple[str, int], list[Spent]] = {(s, m): [] for s in sides for m in mixes}
    for run in sides.values():
        run(max(mixes))  # the first pass is slow
    for _ in range(plan.rounds):
        for mix in mixes:
            for name, run in sides.items():
                spent[name, mix].append(run(mix))
    tokens = plan.rows * plan.tokens
    later = plan.rows * (plan.tokens - 1)
    result: dict[str, Any] = {}
    for name in sides:
        rates = {
            mix: (
                tokens / statistics.median(s.whole for s in spent[name, mix]),
                later / statistics.median(s.decoding for s in spent[name, mix]),
            )
            for mix in mixes
        }
        result[name] = {
            "base only" if mix == 0 else f"{mix} adapters": {
                "tokens_per_cpu_second": round(rates[mix][0], 1),
                "of_base_only": round(rates[mix][0] / rates[0][0], 3),
                "of_base_only_without_prompts": round(rates[mix][1] / rates[0][1], 3),
            }
            for mix in mixes
        }
    return result


def prompts(rows: int) -> list[list[int]]:
    import torch

    made = torch.randint(
        300, 390, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1)
    )
    return [[int(token) for token in row] for row in made]


def engine_side(folder: Path, adapters: Named, precision: str, plan: Plan) -> Run:
    """The embedded engine: its adapters as it reads them, its running batch."""
    from infra.artifacts.base import read_base_shape
    from serving.engines.embedded.adapter_weights import read_adapter
    from serving.engines.embedded.base_model import load_base_model
    from serving.engines.embedded.decoding import Row, RunningBatch
    from serving.engines.embedded.mixed_lora import BASE_SLOT, AdapterBank

    base = load_base_model(folder, precision)  # type: ignore[arg-type]
    bank = AdapterBank(base.model)
    shape = read_base_shape(folder)
    slots = [
        bank.add(read_adapter(name, path, shape, bank.layers, max_rank=RANK))
        for name, path in adapters
    ]
    asked = prompts(plan.rows)

    def run(mix: int) -> Spent:
        batch = RunningBatch(base.model, bank, pad_token=base.pad_token, decode=base.decode)
        rows = [
            Row(prompt, slots[number % mix] if mix else BASE_SLOT, plan.tokens)
            for number, prompt in enumerate(asked)
        ]
        started = time.process_time()
        batch.admit(rows)
        prefilled = time.process_time()
        while batch.rows:
            batch.step()
        ended = time.process_time()
        return Spent(ended - started, ended - prefilled)

    return run


def peft_side(folder: Path, adapters: Named, dtype: str, plan: Plan) -> Run:
    """PEFT's own mixed batch: ``generate(adapter_names=...)``; base only is the plain model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
    mixed: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    mixed = PeftModel.from_pretrained(mixed, adapters[0][1], adapter_name="0")
    for number, (_, path) in enumerate(adapters[1:], start=1):
        mixed.load_adapter(path, adapter_name=str(number))
    # PEFT keeps adapters in float32 by default; the same precision on both sides is the fair race.
    mixed.to(kind).eval()
    ids = torch.tensor(prompts(plan.rows))

    @torch.inference_mode()
    def generate(mix: int, tokens: int) -> float:
        more = {"adapter_names": [str(row % mix) for row in range(plan.rows)]} if mix else {}
        started = time.process_time()
        (mixed if mix else plain).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            **more,
        )
        return time.process_time() - started

    def run(mix: int) -> Spent:
        whole = generate(mix, plan.tokens)
        return Spent(whole, whole - generate(mix, 1))

    return run
