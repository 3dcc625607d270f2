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
    decoding: float | None = None
    """Without the prompts; None: not known."""


def measure(sides: dict[str, Run], plan: Plan) -> dict[str, Any]:
    """Tokens per processor second of each side and mix, and its ratio to that side's base only."""
    mixes = (0, *plan.mixes)
    spent: dict[tuple[str, int], list[Spent]] = {(s, m): [] for s in sides for m in mixes}
    for run in sides.values():
        run(0)  # the first pass is slow
    for _ in range(plan.rounds):
        for mix in mixes:
            for name, run in sides.items():
                spent[name, mix].append(run(mix))
    result: dict[str, Any] = {}
    for name in sides:
        whole = {mix: statistics.median(s.whole for s in spent[name, mix]) for mix in mixes}
        decoding = {
            mix: statistics.median(s.decoding for s in spent[name, mix] if s.decoding is not None)
            for mix in mixes
            if spent[name, mix][0].decoding is not None
        }
        result[name] = {
            label(mix): {
                "tokens_per_cpu_second": round(plan.rows * plan.tokens / whole[mix], 1),
                "of_base_only": round(whole[0] / whole[mix], 3),
            }
            | ({"decoding_of_base_only": round(decoding[0] / decoding[mix], 3)} if decoding else {})
            for mix in mixes
        }
    return result


def label(mix: int) -> str:
    return {0: "base only", 1: "1 adapter"}.get(mix, f"{mix} adapters")


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
    def run(mix: int) -> Spent:
        more = {"adapter_names": [str(row % mix) for row in range(plan.rows)]} if mix else {}
        started = time.process_time()
        (mixed if mix else plain).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=plan.tokens,
            min_new_tokens=plan.tokens,
            **more,
        )
        return Spent(time.process_time() - started)

    return run
