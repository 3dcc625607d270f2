"""Real adapters and real engine processes for the engine tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import digest_folder
from infra.artifacts.manifest import AdapterManifest, adapter_name
from infra.prompting.template import FULL

START_SECONDS = 120


def make_adapter(
    base: Path,
    parent: Path,
    *,
    task: str,
    seed: int,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    layers: Sequence[int] | None = None,
    strength: float = 1.0,
) -> tuple[str, Path]:
    """Save a random adapter with PEFT and give it a manifest; returns (name, folder)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=list(targets),
                layers_to_transform=list(layers) if layers is not None else None,
                init_lora_weights=False,
                task_type="CAUSAL_LM",
            ),
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(strength)
    scratch = Path(tempfile.mkdtemp(dir=parent))
    model.save_pretrained(scratch)
    for extra in set(scratch.iterdir()) - {
        scratch / "adapter_config.json",
        scratch / "adapter_model.safetensors",
    }:
        extra.unlink()
    return describe(base, scratch, parent, task=task)


def describe(base: Path, scratch: Path, parent: Path, *, task: str) -> tuple[str, Path]:
    """Write a manifest that is true of ``scratch`` and move it to ``parent / name``."""
    digest, files = digest_folder(scratch)
    name = adapter_name(task, digest)
    manifest = AdapterManifest(
        name=name,
        task_id=task,
        digest=digest,
        files=files,
        base_model="tiny",
        base_digest=read_base_shape(base).digest,
        spec={},
        spec_digest="0" * 64,
        dataset_digest="0" * 64,
        format=FULL.to_dict(),
    )
    (scratch / "manifest.json").write_bytes(manifest.to_json())
    target = parent / name
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
    return name, target


@contextmanager
def engine_process(
    model: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """The embedded engine in its own process on a free port; yields its address."""
    command = [sys.executable, "-m", "serving.engines.embedded", "--model", str(model)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--precision", "float32", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    assert process.stdout is not None
    guard = threading.Timer(START_SECONDS, process.kill)
    guard.start()
    try:
        line = process.stdout.readline()
        guard.cancel()
        assert line, f"the engine did not start, exit status {process.wait(10)}"
        yield json.loads(line)["url"]
    finally:
        guard.cancel()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()
