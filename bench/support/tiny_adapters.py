"""A tiny base model and adapters that have learnt one answer each by heart, so that callers can tell
who spoke. Real weights in the real formats, trained here in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.artifacts.folder import read_manifest
from infra.artifacts.manifest import AdapterManifest
from infra.prompting.template import FULL, STOP, render_prompt
from tests.serving.engines.building import describe
from tests.tiny_model import make_tiny_model

STEPS = 300
GOOD_ENOUGH = 0.01
"""Mean loss per token at which the answer is certain."""


def make_base(folder: Path) -> Path:
    """A tiny model whose logits are wide enough for a frozen head to be sure of anything."""
    from safetensors.numpy import load_file, save_file

    make_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def teach(
    base: Path, parent: Path, task: str, request: Mapping[str, Any], answer: str
) -> tuple[AdapterManifest, Path]:
    """An adapter that answers ``request`` by ``answer``; its manifest and folder.

    Raises RuntimeError when it did not learn.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer(render_prompt(request, FULL), add_special_tokens=False)["input_ids"]
    target = tokenizer(answer + STOP, add_special_tokens=False)["input_ids"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(
                r=8,
                lora_alpha=16,
                target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                task_type="CAUSAL_LM",
            ),
        )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-3)
        ids = torch.tensor([prompt + target])
        labels = torch.tensor([[-100] * len(prompt) + target])
        for _ in range(STEPS):
            loss = model(input_ids=ids, labels=labels).loss
            if loss.item() < GOOD_ENOUGH:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if loss.item() >= GOOD_ENOUGH:
        raise RuntimeError("the tiny adapter did not learn its answer")
    scratch = parent / f"scratch-{answer}"
    model.save_pretrained(scratch)
    for extra in scratch.iterdir():
        if extra.name not in ("adapter_config.json", "adapter_model.safetensors"):
            extra.unlink()
    _, folder = describe(base, scratch, parent, task=task)
    return read_manifest(folder), folder
