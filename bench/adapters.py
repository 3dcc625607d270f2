"""What many adapters cost: routing, bringing one in, and mixing them in one batch. Prints one JSON object.

* ``routing``: processor time to find a call's task and arm with 10, 100 and 1,000 adapters registered,
  of which 100 are hot; it should not grow.
* ``loading``: seconds from the object store to the first token, for the embedded engine and for vLLM.
* ``mixing``: tokens per processor second with 1, 4, 8 and 32 adapters in one batch against the base
  alone: the embedded engine's decoder and PEFT's own ``adapter_names`` side by side, one thread, same
  precision. The goal is 0.65 of base only.
* ``vllm_mixing``: the same mixes through a real vLLM, by its processes' processor time.

vLLM is measured when NIGHTSCHOOL_VLLM_PYTHON names a Python that has it
(``infra/deploy/vllm/make-environment.sh``). The base is SmolLM2-135M-Instruct with random adapters of
rank 16 on all seven projections (its speed is measured, not its sense); ``--quick`` takes a random
Llama of a million parameters, fewer mixes and one round.

    python bench/adapters.py [--quick] [--json FILE] [--model FOLDER] [--precision auto]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support import adapter_mixes, adapter_serving, routing_cost
from bench.support.adapter_mixes import Plan
from bench.support.random_adapters import RANK, make_adapters, packaged_base, small_base

PARTS = ("routing", "loading", "mixing", "vllm")
GOAL = 0.65


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--quick", action="store_true", help="a small model, once")
    parser.add_argument("--model", type=Path, help="another base model's folder")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of " + ", ".join(PARTS))
    options = parser.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts takes some of {', '.join(PARTS)}")
    if options.quick:
        plan = Plan(rows=8, tokens=8, mixes=(1, 4, 8), rounds=1)
    else:
        plan = Plan(rows=32, tokens=options.tokens, mixes=(1, 4, 8, 32), rounds=options.rounds)
    # Stopped in the middle, it must take the engines that it started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(plan, parts, options, Path(scratch))
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def measure(
    plan: Plan, parts: list[str], options: argparse.Namespace, scratch: Path
) -> dict[str, Any]:
    import torch
    import transformers

    from serving.engines.embedded.base_model import choose_precision, count_parameters

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    if "routing" in parts:
        calls, rounds = (200, 2) if options.quick else (2000, 5)
        result["routing"] = routing_cost.measure([10, 100, 1000], calls, rounds)
    if parts == ["routing"]:
        return result
    base = options.model or (small_base(scratch / "base") if options.quick else packaged_base())
    parameters = count_parameters(base)
    dtype = str(choose_precision(options.precision, parameters)).removeprefix("torch.")
    adapters = make_adapters(base, scratch / "adapters", max(plan.mixes))
    result |= {
        "model": base.name,
        "million_parameters": round(parameters / 1e6),
        "precision": dtype,
        "rank": RANK,
        "rows": plan.rows,
        "prompt_tokens": adapter_mixes.PROMPT_TOKENS,
        "answer_tokens": plan.tokens,
        "rounds": plan.rounds,
    }
    few = adapters[: 2 if options.quick else 8]
    if "loading" in parts:
        with adapter_serving.embedded(base, dtype) as (url, _):
            loading = adapter_serving.load_times(url, base, few, scratch / "embedded")
            result["loading"] = {"embedded": asyncio.run(loading)}
    if "mixing" in parts:
        sides = {
            "embedded": adapter_mixes.engine_side(base, adapters, dtype, plan),
            "peft": adapter_mixes.peft_side(base, adapters, dtype, plan),
        }
        mixing = adapter_mixes.measure(sides, plan)
        least = min(mix["of_base_only"] for mix in mixing["embedded"].values())
        result["mixing"] = {**mixing, "least_of_base_only": least, "goal": GOAL}
    if "vllm" in parts and os.environ.get(adapter_serving.VLLM_PYTHON):
        with adapter_serving.vllm(base, dtype, scratch / "vllm.log") as running:
            loading = adapter_serving.load_times(running[0], base, few, scratch / "vllm")
            result.setdefault("loading", {})["vllm"] = asyncio.run(loading)
            mixed = adapter_serving.mixes(running, base, adapters, plan)
            result["vllm_mixing"] = asyncio.run(mixed)
    return result


if __name__ == "__main__":
    main()
