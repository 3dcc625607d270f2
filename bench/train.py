"""Speed and memory of the ``peft`` backend beside a plain TRL ``SFTTrainer``. Prints one JSON object.

Same base model, LoRA, precision, optimizer, batch size, number of steps and examples (the traffic
that the demo generates: tool calls, tickets and order notes), one after the other, each in a process of
its own, one thread:

* ``trl``: SFTTrainer as it comes, loss on the answers only, examples in random order;
* ``same``: our backend with examples in random order too (``batching = "shuffled"``);
* ``grouped``: our backend as it comes (examples of like length share a batch);
* ``packed``: our backend with ``batching = "packed"``.

``tokens_per_cpu_second`` counts tokens without padding over processor time from the first step's end to
the last one's, so that other work on the machine does not count; ``peak_mib`` is the process's peak.
The base is SmolLM2-135M-Instruct; ``--quick`` takes a random Llama of a million parameters.

    python bench/train.py [--quick] [--json FILE] [--steps 24] [--batch 8]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.random_adapters import packaged_base, small_base
from infra.prompting.template import PRUNED

SIDES = ("trl", "same", "grouped", "packed")
BATCHING = {"same": "shuffled", "grouped": "grouped", "packed": "packed"}
EXAMPLES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_side(options.side, options.base, options.steps, options.batch)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = small_base(Path(scratch) / "base") if options.quick else packaged_base()
        result: dict[str, Any] = {"model": base.name, "steps": options.steps}
        result |= {"batch_size": options.batch, "examples": EXAMPLES}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--base", str(base)]
            command += ["--steps", str(options.steps), "--batch", str(options.batch)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result[side] = json.loads(done.stdout.splitlines()[-1])
    peer = result["trl"]
    for side in SIDES[1:]:
        ours = result[side]
        speed = ours["tokens_per_cpu_second"] / peer["tokens_per_cpu_second"]
        ours["times_trl"] = round(speed, 2)
        ours["memory_times_trl"] = round(ours["peak_mib"] / peer["peak_mib"], 2)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def examples() -> list[dict[str, Any]]:
    """The demo's generated calls of three kinds, in the order in which it plays them."""
    from flows.demo.traffic import sessions

    calls = [
        {"request": call.request, "answer": call.answer}
        for session in sessions(3, EXAMPLES, ("home", "triage", "extract"))
        for call in session.calls
    ]
    return calls[:EXAMPLES]


class Meter:
    """Tokens and processor seconds between the end of the first step and that of the last."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, int]] = []

    def mark(self, tokens: int) -> None:
        self.marks.append((time.process_time(), time.monotonic(), tokens))

    def result(self, loss: float) -> dict[str, float]:
        tokens = sum(mark[2] for mark in self.marks[1:])
        cpu = self.marks[-1][0] - self.marks[0][0]
        wall = self.marks[-1][1] - self.marks[0][1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "tokens": tokens,
            "tokens_per_cpu_second": round(tokens / cpu, 1),
            "tokens_per_second": round(tokens / wall, 1),
            "peak_mib": round(peak),
            "last_loss": round(loss, 4),
        }


def one_side(side: str, base: Path, steps: int, batch: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if side == "trl":
            return plain_trl(base, steps, batch, Path(scratch))
        return our_backend(side, base, steps, batch, Path(scratch))


def our_backend(side: str, base: Path, steps: int, batch: int, scratch: Path) -> dict[str, float]:
    from infra.artifacts.base import fingerprint
    from trainers.backends.plain import PlainBackend
    from trainers.run_folder import RunFolder, RunRequest
    from trainers.spec import TrainSpec

    spec = TrainSpec(
        task_id="bench",
        base_model="bench",
        base_digest=fingerprint(base),
        dataset_digest="d" * 64,
        format=PRUNED.to_dict(),
        batch_size=batch,
        steps=steps,
        checkpoint_steps=steps,
        batching=BATCHING[side],
    )
    rows = examples()
    run = RunFolder.create(scratch / "run", spec, RunRequest(base_folder=base), rows)
    meter = Meter()
    done = PlainBackend().train(
        spec, rows, [], base, run, lambda event: meter.mark(event.tokens), lambda: None
    )
    return meter.result(done.loss)


def plain_trl(base: Path, steps: int, batch: int, scratch: Path) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from trainers.backends.precision import base_precision
    from trainers.encoding import encode, load_tokenizer
    from trainers.spec import PROJECTIONS

    encoded = encode(examples(), load_tokenizer(base), PRUNED, 512).examples
    rows = {"input_ids": [e.input_ids for e in encoded], "labels": [e.labels for e in encoded]}
    set_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, base_precision("auto")))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    meter, losses = Meter(), []

    class Counting(SFTTrainer):
        seen = 0

        def training_step(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            self.seen = int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *args, **more)

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                losses.append(float(logs["loss"]))
                meter.mark(trainer.seen)

    arguments = SFTConfig(
        output_dir=str(scratch / "out"),
        max_steps=steps,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        per_device_train_batch_size=batch,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=int(0.05 * steps),
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=7,
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = Counting(
        model=get_peft_model(model, lora),
        processing_class=AutoTokenizer.from_pretrained(base),
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        callbacks=[Watch()],
    )
    trainer.train()
    return meter.result(sum(losses[-10:]) / len(losses[-10:]))


if __name__ == "__main__":
    main()
