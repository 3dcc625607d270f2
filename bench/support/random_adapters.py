"""Base model and adapters for measuring speed: the real files with random low-rank weights in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
Named = list[tuple[str, Path]]


def small_base(folder: Path) -> Path:
    """A random Llama of some million parameters, for a quick look."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(folder, hidden=192, layers=4, heads=6, kv_heads=2)


def packaged_base() -> Path:
    """SmolLM2-135M-Instruct, converted once into ``var/models``."""
    from infra.settings.serving import Engine
    from trainers.base_model import prepare_base

    return prepare_base(Engine()).folder


def make_adapters(base: Path, parent: Path, count: int) -> Named:
    """Adapters of rank 16 on all seven projections of every layer, packaged as the trainer does."""
    from peft import LoraConfig
    from safetensors.numpy import save_file

    from infra.artifacts.base import read_base_shape
    from tests.serving.engines.building import describe

    parent.mkdir(parents=True, exist_ok=True)
    shapes = {
        path: shape
        for path, shape in read_base_shape(base).matrices.items()
        if path.rpartition(".")[2] in PROJECTIONS
    }
    adapters = []
    for number in range(count):
        random = np.random.default_rng(number)
        tensors = {}
        for path, (out, into) in shapes.items():
            for side, shape in (("A", (RANK, into)), ("B", (out, RANK))):
                values = 0.02 * random.standard_normal(shape, dtype=np.float32)
                tensors[f"base_model.model.{path}.lora_{side}.weight"] = values
        scratch = parent / f"scratch-{number}"
        config = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
        )
        config.save_pretrained(str(scratch))
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        adapters.append(describe(base, scratch, parent, task=f"task-{number}"))
    return adapters
