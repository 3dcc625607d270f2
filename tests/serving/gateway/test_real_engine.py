"""The gateway with the embedded engine: real weights, trained in the test, pulled and served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from infra.artifacts.folder import read_manifest
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.prompting.template import FULL, STOP, render_prompt
from infra.settings.model import Settings
from serving.gateway.server import Gateway
from tests.serving.engines.building import describe, engine_process
from tests.serving.gateway.conftest import configured
from tests.serving.gateway.upstreams import TeacherServer, listening
from tests.serving.gateway.world import add_task, chat, logged, ready, register, set_route
from tests.tiny_model import make_tiny_model

KNOWN = "mail ann@example.com"
ANSWER = "done <EMAIL_1>"


def make_base(folder: Path) -> Path:
    """A tiny model whose logits are wide enough for a frozen head to be sure of anything."""
    from safetensors.numpy import load_file, save_file

    make_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def train(base: Path, parent: Path) -> tuple[str, Path]:
    """An adapter that has learnt one call by heart; returns (name, folder)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    request = chat(KNOWN.replace("ann@example.com", "<EMAIL_1>"))
    prompt = tokenizer(render_prompt(request, FULL), add_special_tokens=False)["input_ids"]
    answer = tokenizer(ANSWER + STOP, add_special_tokens=False)["input_ids"]
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
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-3)
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        for _ in range(200):
            loss = model(input_ids=ids, labels=labels).loss
            if loss.item() < 0.01:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.01, "the test's own model did not learn"
    scratch = parent / "scratch"
    model.save_pretrained(scratch)
    for extra in scratch.iterdir():
        if extra.name not in ("adapter_config.json", "adapter_model.safetensors"):
            extra.unlink()
    return describe(base, scratch, parent, task="lights")


@pytest.mark.slow
async def test_a_trained_adapter_answers_what_it_knows_and_the_teacher_the_rest(
    settings: Settings,
    database: Database,
    store: ObjectStore,
    teacher: TeacherServer,
    tmp_path: Path,
) -> None:
    base = await asyncio.to_thread(make_base, tmp_path / "base")
    name, folder = await asyncio.to_thread(train, base, tmp_path)
    manifest = read_manifest(folder)
    location = f"adapters/lights/{manifest.digest}"
    for path in sorted(folder.iterdir()):
        store.put(f"{location}/{path.name}", path.read_bytes())
    add_task(database)
    register(database, manifest, location, threshold=-0.2)
    set_route(database, champion=name)
    with engine_process(base) as url:
        made = Gateway(configured(settings, teacher.url, url))
        async with listening(made.app()) as gateway, aiohttp.ClientSession() as http:
            await ready(http, gateway, name)

            async def ask(text: str) -> tuple[str, str, str]:
                async with http.post(f"{gateway}/v1/chat/completions", json=chat(text)) as response:
                    body = await response.json()
                    return (
                        body["choices"][0]["message"]["content"],
                        response.headers["x-nightschool-answered-by"],
                        response.headers["x-nightschool-call-id"],
                    )

            content, by, call_id = await ask(KNOWN)
            assert (content, by) == ("done ann@example.com", name)
            record = await logged(store, call_id)
            assert record.answer is not None and record.answer["content"] == ANSWER
            assert record.confidence is not None and -0.2 < record.confidence <= 0
            # Of what it never saw it is not sure, or it does not end: the teacher answers.
            content, by, call_id = await ask("what is the capital of Portugal, and why")
            assert by == "teacher" and content.startswith("teacher: ")
            record = await logged(store, call_id)
            assert record.answered_by.escalation is not None
            assert [other.adapter for other in record.other_answers] == [name]
