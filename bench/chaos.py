"""Break everything in turn under a steady stream of calls, and count what was lost.

A whole small deployment runs as processes: two gateways, PostgreSQL, a server that speaks the S3
protocol, a mock teacher, and the embedded engine with a tiny model and two adapters whose answers
their callers can tell apart. The route swings between the two adapters all the time. Faults come in
turn (``bench/support/chaos_plan.py``); what cannot be done on this machine is skipped, and the result
says why. In the end every acknowledged call must be found exactly once in object storage.

    python bench/chaos.py [--minutes 10] [--quick] [--json FILE]

Prints one JSON object. Exit status 0 when nothing was lost, doubled or answered by the wrong adapter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.callers import Callers
from bench.support.chaos_plan import Fault, Scheduled, plan, possible, quick_plan
from bench.support.chaos_verdict import Named, Verdict, Window, judge
from bench.support.deployment import KNOWN, TASK, Deployment, deployment
from bench.support.programs import Program, scratch
from infra.database.open import Database
from serving.registry.registry import Registry

SETTLED_SECONDS = 1.2
"""After a route change, before the database is taken away: both gateways have heard of it by then."""
LORIS = 60
SHIP_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long faults are made")
    parser.add_argument("--quick", action="store_true", help="every fault once, and short")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    options = parser.parse_args(arguments)
    wanted = quick_plan() if options.quick else plan(options.minutes)
    started = time.monotonic()
    # Told to end, it still takes its processes and its small disk away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with scratch("chaos") as folder, deployment(folder) as made:
        verdict = asyncio.run(run(made, wanted))
    body = {"seconds": round(time.monotonic() - started), **verdict.to_json()}
    text = json.dumps(body, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if verdict.passed else 1


async def run(made: Deployment, wanted: Sequence[Scheduled]) -> Verdict:
    """Carry out a plan on a running deployment, then end its gateways and count.

    Raises RuntimeError when the deployment does not recover from a fault, or does not end in order.
    """
    todo, skipped = possible(wanted, without=made.missing, actions=("fill", "clock"))
    answers = {answer: name for name, answer in made.adapters.items()}
    callers = Callers(made.gateways, KNOWN, answers)
    swing = Swing(made)
    await made.recovered()
    callers.start()
    swing.start()
    windows = []
    try:
        for item in todo:
            await asyncio.sleep(item.calm_seconds)
            windows.append(await suffer(made, item.fault, swing))
        await asyncio.sleep(SETTLED_SECONDS)
    finally:
        await swing.stop()
        await callers.stop()
    await finish(made)
    recorded = await asyncio.to_thread(made.recorded)
    return judge(callers.attempts, recorded, swing.named, windows, skipped)


async def suffer(made: Deployment, fault: Fault, swing: Swing) -> Window:
    """One fault, from its beginning until everything serves again."""
    if fault.hides_routes:
        await swing.rest()
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as undo:
        for target in fault.targets:
            await make(made, fault, target, undo)
        await asyncio.sleep(fault.seconds)
        ended = time.monotonic()
    await made.recovered()
    swing.go_on()
    return Window(fault.name, began, ended, time.monotonic())


async def make(
    made: Deployment, fault: Fault, target: str, undo: contextlib.AsyncExitStack
) -> None:
    """Make the fault at one target; what ends it goes on ``undo``."""
    program = made.programs[target]
    if fault.action == "kill":
        program.kill()
        undo.push_async_callback(asyncio.to_thread, program.start)
    elif fault.action == "pause":
        # The relay in front of the store would pass on the silence, and buffer what is said.
        program = made.programs["objects"] if target == "store" else program
        program.pause()
        undo.callback(program.resume)
    elif fault.action == "mode":
        await made.set_teacher(fault.argument)
        undo.push_async_callback(made.set_teacher, "ok")
    elif fault.action == "fill":
        await asyncio.to_thread(made.fill_disk)
        undo.callback(made.free_disk)
    elif fault.action == "clock":
        made.set_clock(fault.argument)
        undo.callback(made.set_clock, "0")
    elif fault.action == "loris":
        dripping = [asyncio.create_task(drip(program)) for _ in range(LORIS)]
        undo.push_async_callback(_gather, dripping)
        for task in dripping:
            undo.callback(task.cancel)


async def drip(program: Program) -> None:
    """A request that never ends, a byte at a time; again when the gateway has had enough of it."""
    port = int(program.url.rpartition(":")[2])
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
                for byte in "X-Slow: " + "z" * 10_000:
                    writer.write(byte.encode())
                    await writer.drain()
                    await asyncio.sleep(0.2)
            finally:
                writer.close()
        await asyncio.sleep(0.2)


async def finish(made: Deployment) -> None:
    """SIGTERM to both gateways; they end in order and leave nothing unshipped."""
    for program in made.gateways:
        status = await asyncio.to_thread(program.terminate)
        if status != 0:
            raise RuntimeError(f"{program.name} ended with {status}:\n{program.tail()}")
    if not made.unshipped():
        return
    # What could not be shipped in time is shipped by the next start.
    for program in made.gateways:
        await asyncio.to_thread(program.start)
    deadline = time.monotonic() + SHIP_SECONDS
    while made.unshipped():
        if time.monotonic() > deadline:
            raise RuntimeError(f"records stay in the spool: {made.unshipped()[:5]}")
        await asyncio.sleep(0.1)
    for program in made.gateways:
        await asyncio.to_thread(program.terminate)


class Swing:
    """Changes the route all the time, and remembers when it named whom."""

    def __init__(self, made: Deployment) -> None:
        self._made = made
        self._names = list(made.adapters)
        self._going = asyncio.Event()
        self._going.set()
        self._stop = asyncio.Event()
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.named = [Named(self._names[0], time.monotonic() - 60, float("inf"))]

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        self._stop.set()
        self._going.set()
        if self._task is not None:
            await self._task

    async def rest(self) -> None:
        """No change until ``go_on``; returns when the last one is known everywhere."""
        self._going.clear()
        async with self._busy:
            pass
        await asyncio.sleep(SETTLED_SECONDS)

    def go_on(self) -> None:
        self._going.set()

    async def _loop(self) -> None:
        database = self._made.open_database()
        try:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), random.uniform(1.0, 3.0))
                await self._going.wait()
                async with self._busy:
                    if self._going.is_set() and not self._stop.is_set():
                        await self._change(database)
        finally:
            database.close()

    async def _change(self, database: Database) -> None:
        last = self.named[-1]
        name = next(name for name in self._names if name != last.name)
        since = time.monotonic()
        await asyncio.to_thread(write, database, name)
        committed = time.monotonic()
        self.named[-1] = Named(last.name, last.since, committed)
        self.named.append(Named(name, since, float("inf")))


def write(database: Database, name: str) -> None:
    registry = Registry(database)
    version = registry.route(TASK).version
    registry.set_route(TASK, version, None, actor="chaos", why="swing", champion=name)


async def _gather(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
