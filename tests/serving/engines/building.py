"""Real adapters and real engine processes for the engine tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import digest_folder
from infra.artifacts.manifest import AdapterManifest, adapter_name
from infra.prompting.template import FULL

START_SECONDS = 120
VLLM_START_SECONDS = 240


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


@dataclass(frozen=True)
class EngineProcess:
    """An embedded engine that runs."""

    url: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def engine_process(
    model: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """The embedded engine in its own process on a free port; yields its address."""
    with start_engine(model, *options, environment=environment) as engine:
        yield engine.url


@contextmanager
def start_engine(
    model: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[EngineProcess]:
    """The embedded engine in its own process, on a free port unless ``options`` name one."""
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
        yield EngineProcess(json.loads(line)["url"], process)
    finally:
        guard.cancel()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()


@contextmanager
def vllm_process(python: str, model: Path, log: Path, *options: str) -> Iterator[str]:
    """A real vLLM on a CPU, in its own environment; yields its address."""
    with start_vllm(python, model, log, *options) as (url, _):
        yield url


@contextmanager
def start_vllm(python: str, model: Path, log: Path, *options: str) -> Iterator[tuple[str, int]]:
    """As ``vllm_process``; yields address and process id, which is its session's too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    command += ["--enable-lora", "--max-loras", "4", "--max-cpu-loras", "8"]
    command += ["--max-lora-rank", "16", "--max-num-seqs", "16", *options]
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + VLLM_START_SECONDS
        while not _answers(f"{url}/health"):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"vLLM did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield url, process.pid
    finally:
        # vLLM is several processes: the whole session that was started for it goes.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
