"""How quickly does the judge replay a test set through the engine: with full batches, and one by one?

The same questions through the judge's own replay, parsing and scoring, to one adapter of rank 16 in the
embedded engine, one thread. The adapter's weights are random, so every answer runs to its limit and both
ways make the same tokens. Examples per second on the wall clock hang on what else the machine does;
examples per second of the engine's processor time do not.

    python bench/judge.py [--quick] [--json FILE] [--rows 32] [--tokens 32] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.random_adapters import Named, make_adapters, packaged_base, small_base
from bench.support.real_answers import Asked, traffic

SEED = 12


async def replayed(
    url: str, pid: int, adapter: Named, asked: Sequence[Asked], tokens: int, batch: int
) -> tuple[dict[str, float], list[Any]]:
    """Speed of one replay with ``batch`` questions in flight, and what was answered."""
    import psutil

    from evaluators.replay import replay
    from infra.prompting.template import PRUNED
    from serving.engines.client import EngineClient
    from serving.small_model import SmallAnswer, SmallModel

    ((name, folder),) = adapter
    engine_process = psutil.Process(pid)

    def processor_seconds() -> float:
        times = engine_process.cpu_times()
        return float(times.user + times.system)

    async with EngineClient(url, timeout_seconds=1800) as engine:
        await engine.ensure_loaded(name, folder)
        small = SmallModel(engine, timeout_seconds=1800)

        async def answer(request: Mapping[str, Any]) -> SmallAnswer:
            return await small.answer(request, adapter=name, form=PRUNED, max_tokens=tokens)

        await replay(answer, asked[:1], timeout_seconds=1800)  # what comes once is not measured
        begun, before = time.perf_counter(), processor_seconds()
        outcomes = await replay(answer, asked, concurrency=batch, timeout_seconds=1800)
        wall, spent = time.perf_counter() - begun, processor_seconds() - before
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failed:
        raise SystemExit(f"the engine failed on {len(failed)} questions: {failed[0]}")
    speed = {
        "in flight": batch,
        "examples per second": round(len(asked) / wall, 3),
        "examples per processor second": round(len(asked) / spent, 3),
        "seconds": round(wall, 1),
    }
    return speed, [outcome.message for outcome in outcomes]


def measure(base: Path, rows: int, tokens: int, batch: int, scratch: Path) -> dict[str, Any]:
    from tests.serving.engines.building import start_engine
    from trainers.data_sets.labels import answer_key

    adapter = make_adapters(base, scratch / "adapters", 1)
    asked = traffic(SEED, rows)
    result: dict[str, Any] = {"model": base.name, "rows": len(asked), "answer tokens": tokens}
    options = ("--batch-size", str(batch), "--max-waiting", "64", "--threads", "1")
    with start_engine(base, *options) as engine:
        ways = {"one by one": 1, "full batch": batch}
        said = {}
        for way, flying in ways.items():
            speed = replayed(engine.url, engine.pid, adapter, asked, tokens, flying)
            result[way], said[way] = asyncio.run(speed)
    alone, full = result["one by one"], result["full batch"]
    for unit in ("examples per second", "examples per processor second"):
        result[f"times, {unit}"] = round(full[unit] / alone[unit], 2)
    same = sum(
        answer_key(one) == answer_key(other) for one, other in zip(*said.values(), strict=True)
    )
    result["same answers"] = f"{same} of {len(asked)}"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a random model of some million weights"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--model", type=Path, help="a prepared base model (default: the packaged one)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.quick:
            base, rows, tokens = small_base(folder / "base"), 16, 8
        else:
            base, rows, tokens = options.model or packaged_base(), options.rows, options.tokens
        found = measure(base, rows, tokens, options.batch, folder)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
