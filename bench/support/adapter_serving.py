"""Adapters through a running engine: how long one takes to come in, and what mixing costs."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bench.support.adapter_mixes import PROMPT_TOKENS, Plan, label
from bench.support.random_adapters import RANK, Named

VLLM_PYTHON = "NIGHTSCHOOL_VLLM_PYTHON"
Running = tuple[str, int]
"""Address, and process id of the session that the engine runs in."""


def embedded(base: Path, precision: str) -> AbstractContextManager[Running]:
    """The embedded engine in a process of its own."""
    from tests.serving.engines.building import start_engine

    @contextmanager
    def start() -> Iterator[Running]:
        options = ("--max-adapters", "40", "--batch-size", "32", "--precision", precision)
        with start_engine(base, *options) as engine:
            yield engine.url, engine.pid

    return start()


def vllm(base: Path, dtype: str, log: Path) -> AbstractContextManager[Running]:
    """A real vLLM for processors, which has a place for every adapter of the largest mix."""
    from tests.serving.engines.building import start_vllm

    options = ("--dtype", dtype, "--max-loras", "32", "--max-cpu-loras", "40")
    return start_vllm(os.environ[VLLM_PYTHON], base, log, *options, "--max-num-seqs", "32")


async def load_times(url: str, base: Path, adapters: Named, scratch: Path) -> dict[str, Any]:
    """Seconds from a route's wish to the first token: pull and verify, verify and load, probe."""
    from infra.artifacts.base import read_base_shape
    from infra.artifacts.folder import pull, read_manifest
    from infra.objects.open import open_store
    from infra.settings.serving import Storage
    from serving.engines.client import EngineClient

    store = open_store(Storage(url=str(scratch / "objects")))
    seconds: dict[str, list[float]] = {"pull": [], "load": [], "probe": [], "whole": []}
    size = 0
    async with EngineClient(url, base=read_base_shape(base), max_rank=RANK) as engine:
        for name, folder in adapters:
            manifest = read_manifest(folder)
            location = f"adapters/{manifest.task_id}/{manifest.digest}"
            for path in folder.iterdir():
                store.put(f"{location}/{path.name}", path.read_bytes())
                size = max(size, path.stat().st_size)
            times = [time.perf_counter()]
            local = await asyncio.to_thread(pull, store, location, scratch / "copies")
            times.append(time.perf_counter())
            await engine.ensure_loaded(name, local)
            times.append(time.perf_counter())
            await engine.probe(name)
            times.append(time.perf_counter())
            for part, start, end in zip(("pull", "load", "probe"), times, times[1:], strict=False):
                seconds[part].append(end - start)
            seconds["whole"].append(times[-1] - times[0])
    return {
        "adapters": len(adapters),
        "megabytes": round(size / 1e6, 1),
        **{f"{part}_seconds": round(statistics.median(v), 3) for part, v in seconds.items()},
    }


async def mixes(running: Running, base: Path, adapters: Named, plan: Plan) -> dict[str, Any]:
    """Tokens per processor second of the engine's processes, all rows asked at once."""
    from tokenizers import Tokenizer

    from serving.engines.client import EngineClient

    url, session = running
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prompts = [
        tokenizer.decode([300 + (row + place) % 90 for place in range(PROMPT_TOKENS)])
        for row in range(plan.rows)
    ]
    spent: dict[int, list[float]] = {mix: [] for mix in (0, *plan.mixes)}
    async with EngineClient(url, timeout_seconds=600) as engine:
        for name, folder in adapters:
            await engine.ensure_loaded(name, folder)

        async def run(mix: int) -> float:
            before, tokens = processor_seconds(session), 0
            answers = await asyncio.gather(
                *(
                    engine.complete(
                        adapters[row % mix][0] if mix else None,
                        prompt,
                        max_tokens=plan.tokens,
                        stop=(),
                    )
                    for row, prompt in enumerate(prompts)
                )
            )
            tokens = sum(answer.completion_tokens for answer in answers)
            return (processor_seconds(session) - before) / tokens

        await run(max(plan.mixes))
        for _ in range(plan.rounds):
            for mix in spent:
                spent[mix].append(await run(mix))
    each = {mix: statistics.median(values) for mix, values in spent.items()}
    return {
        label(mix): {
            "tokens_per_cpu_second": round(1 / seconds, 1),
            "of_base_only": round(each[0] / seconds, 3),
        }
        for mix, seconds in each.items()
    }


def processor_seconds(session: int) -> float:
    """Of all processes in a session or with that id, from /proc."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session or path.parent.name == str(session):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
