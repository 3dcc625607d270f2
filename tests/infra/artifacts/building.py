"""Adapter folders made in the test, sound or with one thing wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from infra.artifacts.folder import digest_folder
from infra.artifacts.manifest import CONFIG, MANIFEST, WEIGHTS, AdapterManifest, adapter_name

TARGETS = ["q_proj", "v_proj"]
RANK = 4
SHAPES = {"q_proj": (64, 64), "v_proj": (32, 64)}
"""(out, in) features in the tiny model."""


def config(**changes: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": TARGETS,
        "bias": "none",
        **changes,
    }


def tensors(layers: int = 2, rank: int = RANK) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for target in TARGETS:
            out, into = SHAPES[target]
            path = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            made[f"{path}.lora_A.weight"] = generator.normal(size=(rank, into)).astype(np.float32)
            made[f"{path}.lora_B.weight"] = generator.normal(size=(out, rank)).astype(np.float32)
    return made


def make_adapter(
    folder: Path,
    base_digest: str,
    *,
    weights: dict[str, np.ndarray] | None = None,
    changes: dict[str, Any] | None = None,
    task_id: str = "lights",
) -> AdapterManifest:
    """Write payload and manifest; the manifest fits the files whatever they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if weights is None else weights, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(json.dumps(config(**(changes or {}))))
    return seal(folder, base_digest, task_id)


def seal(folder: Path, base_digest: str, task_id: str = "lights") -> AdapterManifest:
    """Write the manifest that fits the payload as it is now."""
    digest, files = digest_folder(folder)
    manifest = AdapterManifest(
        name=adapter_name(task_id, digest),
        task_id=task_id,
        digest=digest,
        files=files,
        base_model="tiny",
        base_digest=base_digest,
        spec={},
        spec_digest="0" * 64,
        dataset_digest="1" * 64,
        format={"template": 1},
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest
