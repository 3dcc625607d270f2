"""Tokens per processor second of the embedded engine against plain transformers and PEFT.

Both decode eight prompts that mix four adapters, with the same weights in the same precision on one
thread, to the same number of tokens: PEFT by ``generate(adapter_names=...)``, the engine's decoder
by its running batch. They take turns and processor time is counted, so that other work on the
machine does not decide; what counts is the ratio. Prints one JSON object. That the answers are the
same is for the contract suite to show (``tests/contracts/test_engine.py``).

    python bench/engine_throughput.py [--model FOLDER] [--tokens 24] [--rounds 3]

Without ``--model`` a random Llama of about 30 million parameters is used: its speed, not its sense,
is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROWS, ADAPTERS, RANK, PROMPT_TOKENS = 8, 4, 16, 32
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(
            json.dumps(
                measure(options.model, options.tokens, options.rounds, Path(scratch)), indent=2
            )
        )


def measure(model: Path | None, tokens: int, rounds: int, scratch: Path) -> dict[str, Any]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = model or random_model(scratch / "base")
    adapters = [random_adapter(folder, scratch / f"adapter{n}", n) for n in range(ADAPTERS)]
    prompts = torch.randint(
        300, 390, (ROWS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1)
    ).tolist()
    sides = {
        "peft": peft_side(folder, adapters, prompts, tokens),
        "engine": engine_side(folder, adapters, prompts, tokens),
    }
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    speed = {name: ROWS * tokens / statistics.median(times) for name, times in seconds.items()}
    return {
        "rows": ROWS,
        "adapters": ADAPTERS,
        "rank": RANK,
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": tokens,
        "rounds": rounds,
        "precision": str(precision(folder)).removeprefix("torch."),
        "peft_tokens_per_cpu_second": round(speed["peft"], 1),
        "engine_tokens_per_cpu_second": round(speed["engine"], 1),
        "ratio": round(speed["engine"] / speed["peft"], 2),
    }


def precision(folder: Path) -> Any:
    from serving.engines.embedded.base_model import choose_precision, count_parameters

    return choose_precision("auto", count_parameters(folder))


def random_model(folder: Path) -> Path:
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(folder, hidden=576, layers=12, heads=9, kv_heads=3)


def random_adapter(model: Path, folder: Path, seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=PROJECTIONS,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def peft_side(
    folder: Path, adapters: list[Path], prompts: list[list[int]], tokens: int
) -> Callable[[], None]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = precision(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = PeftModel.from_pretrained(base, adapters[0], adapter_name="0")
    for number, adapter in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter, adapter_name=str(number))
    # PEFT keeps adapters in float32 by default; the same precision on both sides is the fair race.
    model.to(dtype).eval()
    ids = torch.tensor(prompts)
    names = [str(row % ADAPTERS) for row in range(ROWS)]

    @torch.inference_mode()
    def run() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            adapter_names=names,
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
        )

    return run


def engine_side(
    folder: Path, adapters: list[Path], prompts: list[list[int]], tokens: int
) -> Callable[[], None]:
    from safetensors.torch import load_file

    from serving.engines.embedded.base_model import load_base_model
    from serving.engines.embedded.decoding import Row, RunningBatch
    from serving.engines.embedded.mixed_lora import AdapterBank, AdapterWeights

    base = load_base_model(folder, "auto")
    bank = AdapterBank(base.model)
    slots = []
    for adapter in adapters:
        tensors = load_file(adapter / "adapter_model.safetensors")
        pairs = {
            path: (
                tensors[f"base_model.model.{path}.lora_A.weight"].float(),
                tensors[f"base_model.model.{path}.lora_B.weight"].float() * 2,
            )
            for path in bank.layers
        }
        slots.append(bank.add(AdapterWeights(RANK, pairs)))

    def run() -> None:
        batch = RunningBatch(base.model, bank, pad_token=base.pad_token, decode=base.decode)
        rows = [Row(prompt, slots[n % ADAPTERS], tokens) for n, prompt in enumerate(prompts)]
        batch.admit(rows)
        while batch.rows:
            batch.step()

    return run


if __name__ == "__main__":
    main()
