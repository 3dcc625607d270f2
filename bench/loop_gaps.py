"""Where the gaps of the gateway's event loop come from, at a given load: its own work or another's.

A timer of one millisecond in the loop of a gateway that is otherwise as it ships. A gap is a turn that
came more than ``--gap`` milliseconds late. By the processor time that passed meanwhile it is the loop's
``own`` work, a ``thread`` of the same process that held the interpreter, or neither: then the machine had
no core for the gateway (``waited``), which is other processes' doing. Pauses of the garbage collector
and rounds of the shipper are listed in processor time.

    python bench/loop_gaps.py [--seconds 8] [--rate 500] [--gap 4] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop

from bench.gateway import SEED, SESSIONS, add_tasks, at, client, on_core
from bench.support.peers import ours, quick_teacher
from bench.support.programs import scratch
from flows.demo.traffic import sessions

RESULT = "LOOP_GAPS_RESULT"
GAP = "LOOP_GAPS_SECONDS"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=500, help="calls per second")
    parser.add_argument("--gap", type=float, default=4, help="milliseconds")
    parser.add_argument("--quick", action="store_true", help="two seconds")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    options = parser.parse_args(arguments)
    with scratch("gaps") as folder:
        body = measure(
            folder, 2.0 if options.quick else options.seconds, options.rate, options.gap / 1000
        )
    text = json.dumps(body, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(folder: Path, seconds: float, rate: float, gap: float) -> dict[str, Any]:
    calls = [call for one in sessions(SEED, SESSIONS) for call in one.calls]
    teacher = quick_teacher(folder)
    add_tasks(folder / "nightschool.db", calls)
    target = ours(folder, teacher.port)
    result = folder / "gaps.json"
    # The same gateway, started by this script: ``python -m serving.gateway`` becomes ``traced``.
    target.program.command[1:3] = [__file__, "--traced"]
    target.program.environment |= {RESULT: str(result), GAP: str(gap)}
    try:
        with on_core(1):
            teacher.program.start()
        with on_core(0):
            target.program.start()

        async def load() -> tuple[float, float, list[float]]:
            asked = client(target, calls, streamed=False)
            await asked.closed_loop(8, min(2.0, seconds))
            began = time.perf_counter()
            tally = await asked.open_loop(rate, seconds)
            asked.close()
            return began, time.perf_counter(), tally.whole

        with on_core(1):
            began, ended, whole = uvloop.run(load())
        target.program.terminate()
        found = json.loads(result.read_text())
    finally:
        for program in (teacher.program, target.program):
            program.kill()
    within = {name: [x for x in rows if began <= x[0] <= ended] for name, rows in found.items()}
    gaps: dict[str, list[float]] = {"own": [], "thread": [], "waited": []}
    for _, wall, loop, process in within["gaps"]:
        kind = "own" if loop > wall / 2 else "thread" if process - loop > wall / 3 else "waited"
        gaps[kind].append(wall)
    return {
        "seconds": seconds,
        "calls_per_second": rate,
        "call_milliseconds": {f"p{p}": round(at(whole, p), 2) for p in (50, 95, 99)},
        "gaps": {kind: told(walls) for kind, walls in gaps.items()},
        "collector": told([x[1] for x in within["collector"]]),
        "shipper": told([x[1] for x in within["shipper"]]),
    }


def told(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "milliseconds": round(sum(seconds) * 1000, 1),
        "longest_milliseconds": round(max(seconds, default=0.0) * 1000, 1),
    }


def traced(arguments: Sequence[str]) -> int:
    """Run the gateway with the timer in its loop; write what was seen when it ends."""
    import serving.gateway.__main__ as entry
    from serving.gateway.shipper import Shipper

    gap = float(os.environ[GAP])
    seen: dict[str, list[tuple[float, ...]]] = {"gaps": [], "collector": [], "shipper": []}
    began = threading.local()
    serve, ship = entry.serve, Shipper.run_once

    def collected(phase: str, _: object) -> None:
        if phase == "start":
            began.at, began.spent = time.perf_counter(), time.thread_time()
        else:
            seen["collector"].append((began.at, time.thread_time() - began.spent))

    def shipped(self: Shipper, *, last: bool = False) -> bool:
        at, spent = time.perf_counter(), time.thread_time()
        done = ship(self, last=last)
        seen["shipper"].append((at, time.thread_time() - spent))
        return done

    async def timed(settings: Any) -> None:
        loop = asyncio.get_running_loop()
        before = time.perf_counter(), time.thread_time(), time.process_time()

        def tick() -> None:
            nonlocal before
            now = time.perf_counter(), time.thread_time(), time.process_time()
            if now[0] - before[0] > gap:
                seen["gaps"].append((before[0], *(b - a for a, b in zip(before, now, strict=True))))
            before = now
            loop.call_later(0.001, tick)

        tick()
        await serve(settings)

    gc.callbacks.append(collected)
    Shipper.run_once = shipped  # type: ignore[method-assign]
    entry.serve = timed
    status = entry.main(list(arguments))
    Path(os.environ[RESULT]).write_text(json.dumps(seen))
    return status


if __name__ == "__main__":
    sys.exit(traced(sys.argv[2:]) if sys.argv[1:2] == ["--traced"] else main())
