"""Real answers to real requests: adapters trained on the demo's traffic, asked what they never saw.

The statistics of the gate are measured by resampling these answers. They are made once (SmolLM2-135M from
its package, LoRA of rank 16 on the last 12 layers, through the embedded engine) and kept in
``var/real-answers``; what a killed run made is found again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.files import write_atomically

if TYPE_CHECKING:
    from trainers.base_model import BaseModel

KEPT = Path("var/real-answers")
FORMAT = {"drop_system": True, "drop_tools": True}
ROWS = 1200
TRAIN_SEED, ASKED_SEED = 11, 12
BATCH = 8
LAST_LAYERS = 12
"""Of 30: a step takes half as long as with all of them."""
ADAPTERS = {"longer": (240, 7), "shorter": (110, 8)}
"""Name to optimizer steps and seed."""


@dataclass(frozen=True)
class Asked:
    """One held-out request, in the shape that the judge replays."""

    call_id: str
    session: str
    request: dict[str, Any]
    answer: dict[str, Any]


def traffic(seed: int, calls: int) -> list[Asked]:
    """The first ``calls`` calls of the smart home's sessions of this seed."""
    from flows.demo.traffic import sessions

    found = [
        Asked(
            f"{session.session_id}-{place}",
            session.session_id,
            call.request,
            call.answer,
        )
        for session in sessions(seed, calls, ["home"])
        for place, call in enumerate(session.calls)
    ]
    return found[:calls]


def prompt_of(asked: Asked) -> str:
    return str(asked.request["messages"][-1]["content"])


def unseen(asked: Sequence[Asked], learned: Sequence[Asked]) -> list[Asked]:
    """Those whose prompts nobody learned, each prompt once."""
    seen = {prompt_of(item) for item in learned}
    fresh = {prompt_of(item): item for item in asked}
    return [item for prompt, item in fresh.items() if prompt not in seen]


def train(
    folder: Path,
    base: BaseModel,
    steps: int,
    learned: Sequence[Asked],
    validation: Sequence[Asked],
    *,
    pause_step: int | None = None,
    **more: Any,
) -> tuple[Path, float | None]:
    """The packaged adapter of the run in ``folder``, and its validation loss; gone on with if begun.

    Args:
        pause_step: package what there is at this step of ``steps``.
        more: other fields of the spec.

    Raises SystemExit where the training fails.
    """
    from infra.prompting.template import PromptFormat
    from trainers.artifact import package
    from trainers.executors.local import LocalExecutor
    from trainers.executors.protocol import TrainJob
    from trainers.run_folder import RunFolder, RunRequest
    from trainers.spec import LoraSpec, TrainSpec

    spec = TrainSpec(
        task_id="home",
        base_model=base.name,
        base_digest=base.digest,
        dataset_digest="0" * 64,
        lora=LoraSpec(rank=16, alpha=32, last_layers=LAST_LAYERS),
        format=PromptFormat(**FORMAT).to_dict(),
        batch_size=BATCH,
        steps=steps,
        **more,
    )
    request = RunRequest(base_folder=base.folder, backend="peft", pause_step=pause_step)
    rows = [
        [{"request": item.request, "answer": item.answer} for item in part]
        for part in (learned, validation)
    ]
    run = RunFolder.create(folder, spec, request, *rows)
    executor = LocalExecutor()
    try:
        outcome = executor.submit(TrainJob(run.path)).wait()
    finally:
        executor.close()
    if outcome.state != "done" or outcome.result is None:
        raise SystemExit(f"training in {folder} ended {outcome.state}: {outcome.error}")
    return package(run.path).folder, outcome.result.validation_loss


async def answers(url: str, adapter: Path | None, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """What the adapter (None: the base) says, scored as the judge scores, with its log-probabilities."""
    from evaluators.scoring import score_answer
    from infra.artifacts.folder import read_manifest
    from infra.prompting.answers import parse_answer
    from infra.prompting.template import FULL, PromptFormat, render_prompt
    from serving.engines.client import EngineClient

    form = FULL if adapter is None else PromptFormat(**FORMAT)
    done = 0
    places = asyncio.Semaphore(32)
    async with EngineClient(url, timeout_seconds=1800) as engine:
        name = None
        if adapter is not None:
            name = read_manifest(adapter).name
            await engine.ensure_loaded(name, adapter)

        async def ask(item: Asked) -> dict[str, Any]:
            nonlocal done
            async with places:
                body = await engine._request(
                    name, render_prompt(item.request, form), 96, ("<|im_end|>",), 1800
                )
                raw = await engine._json("POST", "/v1/completions", body, timeout_seconds=1800)
            choice = raw["choices"][0]
            parsed = parse_answer(
                choice["text"], item.request, complete=choice["finish_reason"] == "stop"
            )
            score = score_answer(item.answer, parsed.message, item.request)
            done += 1
            if done % 50 == 0:
                print(f"{adapter and adapter.name}: {done} of {len(asked)}", file=sys.stderr)
            return {
                "id": item.call_id,
                "session": item.session,
                "text": choice["text"],
                "finish": choice["finish_reason"],
                "correct": score.correct if parsed.checks.passed else 0.0,
                "stages": score.stages,
                "checks": parsed.checks.passed,
                "tokens": choice["logprobs"]["tokens"],
                "logprobs": [round(value, 4) for value in choice["logprobs"]["token_logprobs"]],
            }

        return list(await asyncio.gather(*map(ask, asked)))


def real_answers(
    rows: int = ROWS, names: Sequence[str] = tuple(ADAPTERS)
) -> dict[str, list[dict[str, Any]]]:
    """Adapter to its answers, made if they are not kept yet."""
    KEPT.mkdir(parents=True, exist_ok=True)
    parts = {
        name: KEPT / (f"{name}.json" if rows == ROWS else f"{name}-{rows}.json") for name in names
    }
    missing = [name for name, part in parts.items() if not part.exists()]
    if missing:
        _make({name: parts[name] for name in missing}, rows)
    return {name: json.loads(part.read_text()) for name, part in parts.items()}


def drawn_answers(
    name: str, answers: Sequence[Mapping[str, Any]], count: int
) -> list[list[dict[str, Any]]]:
    """``count`` further answers of one adapter to each of those requests, as serving draws them.

    Made a hundred requests at a time and kept, so that more can be asked for later.
    """
    part = KEPT / f"{name}-drawn-{count}.json"
    kept: dict[str, list[dict[str, Any]]] = json.loads(part.read_text()) if part.exists() else {}
    requests = _asked(ROWS)
    missing = [requests[row["id"]] for row in answers if row["id"] not in kept]
    if missing:
        from infra.settings.serving import Engine
        from tests.serving.engines.building import start_engine
        from trainers.artifact import package
        from trainers.base_model import prepare_base

        options = ("--batch-size", "64", "--max-waiting", "512", "--threads", "1")
        with start_engine(prepare_base(Engine()).folder, *options) as engine:
            adapter = package(KEPT / name).folder
            for start in range(0, len(missing), 100):
                kept |= asyncio.run(_draw(engine.url, adapter, missing[start : start + 100], count))
                write_atomically(part, json.dumps(kept))
                print(f"{name}: {len(kept)} requests drawn for", file=sys.stderr, flush=True)
    return [kept[row["id"]] for row in answers]


async def _draw(
    url: str, adapter: Path, asked: Sequence[Asked], count: int
) -> dict[str, list[dict[str, Any]]]:
    from infra.artifacts.folder import read_manifest
    from infra.prompting.template import PromptFormat, render_prompt
    from serving.engines.client import EngineClient
    from serving.small_model import seed_of

    places = asyncio.Semaphore(24)
    async with EngineClient(url, timeout_seconds=1800) as engine:
        name = read_manifest(adapter).name
        await engine.ensure_loaded(name, adapter)

        async def ask(item: Asked) -> list[dict[str, Any]]:
            prompt = render_prompt(item.request, PromptFormat(**FORMAT))
            async with places:
                said = await engine.draw(
                    name, prompt, count=count, seed=seed_of(prompt), max_tokens=96
                )
            return [{"text": one.text, "finish": one.finish_reason} for one in said]

        found = await asyncio.gather(*map(ask, asked))
    return {item.call_id: said for item, said in zip(asked, found, strict=True)}


def _asked(rows: int) -> dict[str, Asked]:
    learned = traffic(TRAIN_SEED, 2000)
    return {item.call_id: item for item in unseen(traffic(ASKED_SEED, 4 * rows), learned)[:rows]}


def requests_of(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each of the answers was asked."""
    asked = _asked(ROWS)
    return [asked[row["id"]].request for row in answers]


def _make(parts: Mapping[str, Path], rows: int) -> None:
    from infra.settings.serving import Engine
    from tests.serving.engines.building import start_engine
    from trainers.base_model import prepare_base

    base = prepare_base(Engine())
    learned = traffic(TRAIN_SEED, 2000)
    asked = list(_asked(rows).values())
    for name, part in parts.items():
        steps, seed = ADAPTERS[name]
        every = max(25, steps // 3)
        adapter, _ = train(
            KEPT / name, base, steps, learned, learned[:24], checkpoint_steps=every, seed=seed
        )
        options = ("--batch-size", "32", "--max-waiting", "64", "--threads", "2")
        with start_engine(base.folder, *options) as engine:
            said = asyncio.run(answers(engine.url, adapter, asked))
        write_atomically(part, json.dumps(said))
