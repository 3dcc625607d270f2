"""What a gateway costs: added milliseconds, calls per second of one core, time to the first token.

A mock teacher that answers at once, and one gateway at a time before it: a bare reverse proxy (the
floor), ours as it ships (anonymizing and logging each call, routing among the traffic's tasks),
TensorZero's and LiteLLM's. All get the same requests, real tool calls, labels and records under a
schema; no call and no answer comes twice. The gateway has one core to itself; the load generator and
the teacher share another one. The
targets take turns, so that other work on the machine falls on all alike.

- full load: closed loop of 32 callers; calls per second, and per second of the processor's time that
  the gateway's process really used, which other work on the machine does not change.
- half load: calls at random moments, half as many as the target's full load, in turns with the same
  calls straight to the teacher; the difference of the percentiles is what the target adds. Beside
  it how long the gateway's threads were ready to run and had no core, per call: what the machine's
  other work added. Where that is a good part of the latency, the latency says little of the gateway.
- streams: 4 callers at a time; time to the first byte of the answer's body.
- route changes: from the commit of a change to both of two gateways' answering by it.

    python bench/gateway.py [--seconds 6] [--rounds 3] [--targets NAMES] [--quick] [--json FILE]

Peers are built by ``bench/make-peers.sh``; one that is not there is left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import orjson
import psutil
import uvloop

from bench.support import route_changes as route_change
from bench.support.load import CALL_MARK, SESSION_MARK, Client, Tally, http_request
from bench.support.peers import MODEL, TARGETS, Missing, Target, quick_teacher
from bench.support.programs import Program, scratch
from flows.demo.traffic import TrafficCall, sessions
from infra.database.open import Database
from infra.tasks.embedding import embed, prompt_text
from infra.tasks.signature import signature
from serving.registry.registry import Registry
from tests.serving.gateway.world import add_task

CALLERS = 32
STREAM_CALLERS = 4
SESSIONS = 600
SEED = 5
WARM_SECONDS = 2.0
DIMENSIONS = 512


@dataclass
class Measured:
    """Of one target, over all rounds."""

    per_second: list[float] = field(default_factory=list)
    per_core_second: list[float] = field(default_factory=list)
    half: Tally = field(default_factory=Tally)
    half_direct: Tally = field(default_factory=Tally)
    streams: Tally = field(default_factory=Tally)
    streams_direct: Tally = field(default_factory=Tally)
    rate: float = 0.0
    half_spent: list[float] = field(default_factory=list)
    half_waited: list[float] = field(default_factory=list)
    refused: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6, help="per target, load and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", default=",".join(TARGETS), help="names, with commas")
    parser.add_argument("--quick", action="store_true", help="one round of two seconds")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    options = parser.parse_args(arguments)
    names = options.targets.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}: there are {', '.join(TARGETS)}")
    seconds, rounds = (2.0, 1) if options.quick else (options.seconds, options.rounds)
    with scratch("gateway") as folder:
        body = measure(folder, names, seconds, rounds)
    body["route_change_seconds"] = route_changes(10 if options.quick else 100)
    text = json.dumps(body, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(folder: Path, names: Sequence[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Start what is there, let it take turns, end it."""
    calls = [call for one in sessions(SEED, SESSIONS) for call in one.calls]
    left_out: dict[str, str] = {}
    programs: list[Program] = []
    try:
        teacher = quick_teacher(folder)
        targets = {"direct": teacher}
        programs.append(teacher.program)
        with on_core(1):
            teacher.program.start()
        add_tasks(folder / "nightschool.db", calls)
        for name in names:
            try:
                with on_core(0):
                    target = TARGETS[name](folder, teacher.port)
                    programs.append(target.program)
                    target.program.start()
            except Missing as why:
                left_out[name] = str(why)
                continue
            targets[name] = target
        with on_core(1):
            found = uvloop.run(take_turns(targets, calls, seconds, rounds))
    finally:
        for program in programs:
            program.kill()
    return {
        "seconds": seconds,
        "rounds": rounds,
        "requests": len(calls),
        "mean_request_bytes": round(statistics.mean(len(body_of(c, MODEL, False)) for c in calls)),
        "cores": os.cpu_count(),
        "targets": {
            name: {"note": targets[name].note, **summary(one, found.get("litellm"))}
            for name, one in found.items()
        },
        "left_out": left_out,
    }


def route_changes(changes: int) -> dict[str, Any]:
    kinds: tuple[route_change.Kind, ...] = ("sqlite", "postgresql")
    found: dict[str, Any] = {}
    for kind in kinds:
        try:
            found[kind] = asyncio.run(route_change.measure(changes, database=kind))
        except FileNotFoundError as why:
            found[kind] = str(why)
    return found


async def take_turns(
    targets: dict[str, Target], calls: Sequence[TrafficCall], seconds: float, rounds: int
) -> dict[str, Measured]:
    whole = {name: client(target, calls, streamed=False) for name, target in targets.items()}
    streamed = {name: client(target, calls, streamed=True) for name, target in targets.items()}
    found = {name: Measured() for name in targets if name != "direct"}
    for name in targets:
        await whole[name].closed_loop(8, min(WARM_SECONDS, seconds))
        await streamed[name].closed_loop(4, min(WARM_SECONDS, seconds) / 2)
    for turn in range(rounds):
        for name, one in found.items():
            await full_load(targets[name], whole[name], one, seconds)
        for name, one in found.items():
            one.rate = statistics.median(one.per_second) / 2
            add(one.half_direct, await whole["direct"].open_loop(one.rate, seconds, seed=turn))
            program = targets[name].program
            spent, waited = cpu_seconds(program), waited_seconds(program)
            tally = await whole[name].open_loop(one.rate, seconds, seed=turn)
            calls_made = max(1, len(tally.whole))
            one.half_spent.append((cpu_seconds(program) - spent) / calls_made)
            one.half_waited.append((waited_seconds(program) - waited) / calls_made)
            add(one.half, tally)
        for name, one in found.items():
            for tally, asked in ((one.streams_direct, "direct"), (one.streams, name)):
                add(tally, await streamed[asked].closed_loop(STREAM_CALLERS, seconds / 2))
    for one in (*whole.values(), *streamed.values()):
        one.close()
    return found


async def full_load(target: Target, asked: Client, one: Measured, seconds: float) -> None:
    before = cpu_seconds(target.program)
    tally = await asked.closed_loop(CALLERS, seconds)
    spent = cpu_seconds(target.program) - before
    one.per_second.append(len(tally.whole) / tally.wall_seconds)
    one.per_core_second.append(len(tally.whole) / max(spent, 1e-6))
    one.refused += tally.refused
    await asyncio.sleep(0.5)  # what is left in queues is not the next measurement's


def summary(one: Measured, slowest: Measured | None) -> dict[str, Any]:
    per_core = statistics.median(one.per_core_second)
    added = {
        f"p{percent}": round(at(one.half.whole, percent) - at(one.half_direct.whole, percent), 3)
        for percent in (50, 95, 99)
    }
    first = at(one.streams.first, 50) - at(one.streams_direct.first, 50)
    found = {
        "calls_per_second": round(statistics.median(one.per_second)),
        "calls_per_core_second": round(per_core),
        "half_load_calls_per_second": round(one.rate),
        "half_load_processor_milliseconds_per_call": milliseconds(one.half_spent),
        "half_load_waited_for_a_core_milliseconds_per_call": milliseconds(one.half_waited),
        "added_milliseconds": added,
        "added_to_first_token_milliseconds_p50": round(first, 3),
        "refused": one.refused + one.half.refused + one.streams.refused,
    }
    if slowest is not None:
        ratio = per_core / statistics.median(slowest.per_core_second)
        found["times_litellm_per_core"] = round(ratio, 1)
    return found


def milliseconds(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds) * 1000, 3)


def at(seconds: Sequence[float], percent: int) -> float:
    """A percentile in milliseconds."""
    return statistics.quantiles(seconds, n=100)[percent - 1] * 1000


def add(tally: Tally, more: Tally) -> None:
    tally.first += more.first
    tally.whole += more.whole
    tally.refused += more.refused


def client(target: Target, calls: Sequence[TrafficCall], *, streamed: bool) -> Client:
    requests = [
        http_request(
            target.path,
            body_of(call, target.model, streamed),
            [("x-session-id", f"s-{SESSION_MARK.decode()}"), ("Authorization", "Bearer none")],
        )
        for call in calls
    ]
    return Client("127.0.0.1", target.port, requests)


def body_of(call: TrafficCall, model: str, streamed: bool) -> bytes:
    *before, last = call.messages
    marked = {**last, "content": f"{last['content']} ({CALL_MARK.decode()})"}
    body: dict[str, Any] = {"model": model, **call.request, "messages": [*before, marked]}
    if streamed:
        body["stream"] = True
    return orjson.dumps(body)


def add_tasks(path: Path, calls: Sequence[TrafficCall]) -> None:
    """The tasks that a night finds in this traffic, answered by the teacher."""
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    for kind in ("home", "triage", "extract"):
        like = orjson.loads(body_of(next(c for c in calls if c.kind == kind), MODEL, False))
        centroid = [float(x) for x in embed([prompt_text(like)], DIMENSIONS)[0]]
        add_task(database, kind, like, signature=signature(like).digest, centroid=centroid)
    assert len(Registry(database).tasks()) == 3
    database.close()


def cpu_seconds(program: Program) -> float:
    parent = psutil.Process(program.pid)
    return sum(
        times.user + times.system
        for times in (one.cpu_times() for one in (parent, *parent.children(recursive=True)))
    )


def waited_seconds(program: Program) -> float:
    """How long the program's threads were ready to run and had no core; 0 where nobody counts it."""
    parent, waited = psutil.Process(program.pid), 0
    for process in (parent, *parent.children(recursive=True)):
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                waited += int(path.read_text().split()[1])
    return waited / 1e9


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Keep this process, and those it starts, on one core, where there are two."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{time.monotonic() - started:.0f} seconds", file=sys.stderr)
    sys.exit(status)
