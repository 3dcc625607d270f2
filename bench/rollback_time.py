"""From a bad adapter's first answer to none, on the wall clock of a running system, and its parts.

A small deployment: two gateways and a rollout controller as processes, a registry in SQLite, logs in a
folder, and in this process an engine and a teacher that answer at once and callers that begin 100
sessions a second, whatever comes back, one call each, half at each gateway. Three ways to be taken off:

* ``test``: a canary of 10 % whose answers are well formed and wrong in so many sessions: the sequential
  test finds it in the log. Parts: the sessions it needs, the label's horizon (``maturity_seconds``),
  log and look (shipping, listing, the controller's interval, judging), and from the registry's
  compare-and-swap to the last answer of any gateway;
* ``kill_switch``: a canary whose engine fails: the gateway stops it alone. Parts: to its last ask, and
  until the registry has it;
* ``by_hand``: ``nightschool rollback``: the compare-and-swap, and from it to the last answer.

And what the kill switch costs an answer that is fine.

    python bench/rollback_time.py [--repeats 3] [--rate 100] [--quick] [--json FILE]

Prints one JSON object with medians over the repeats, in seconds. The machine's other work shows in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp

from bench.support.programs import Program, gateway, scratch
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from serving.gateway.guard import KillSwitch
from serving.gateway.routes import AdapterRoute, TaskRoute
from serving.gateway.unsafe import UnsafeOutput
from serving.registry.registry import Registry
from serving.rollout.controller import rollback
from serving.rollout.policy import RolloutPolicy
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import add_adapter, add_task, calls, chat

TASK = "lights"
TEND_SECONDS = 1.0
MATURITY_SECONDS = 2.0
SHIP_SECONDS = 0.5
THIS = str(Path(__file__).resolve())
WAIT_SECONDS = 120.0
TAIL_SECONDS = 2.0
"""How long callers go on after the end, to see that nobody is answered by it any more."""
POLICY = RolloutPolicy(
    shadow_sessions=0, steps=(0.1,), maturity_seconds=MATURITY_SECONDS, cooldown_seconds=0
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="sessions begun a second")
    parser.add_argument("--quick", action="store_true", help="each way once")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--tend", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tend:
        return tend_for_ever()
    repeats = 1 if options.quick else options.repeats
    with scratch("rollback-time") as folder:
        body = asyncio.run(measure(folder, repeats, options.rate))
    text = json.dumps(body, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def tend_for_ever() -> int:
    """The controller's process: what the rollout flow does, without Prefect."""
    from flows.tending import Tender
    from flows.wiring import open_context

    with open_context() as context:
        tender = Tender(context)
        while True:
            tender.look()
            time.sleep(TEND_SECONDS)


@dataclass
class Asked(list[tuple[str, str]]):
    """The engine's prompts, each with its time and the adapter it was for."""

    times: list[tuple[float, str]] = field(default_factory=list)

    def append(self, prompt: tuple[str, str]) -> None:
        self.times.append((time.time(), prompt[0]))


class System:
    """The deployment, its callers, and what they got."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.folder = folder
        self.rate = rate
        self.engine, self.teacher = EngineServer(), TeacherServer()
        self.engine.prompts = Asked()  # type: ignore[assignment]
        self.teacher.say = lambda _: {"role": "assistant", "content": "on"}
        self.database = Database(f"sqlite:///{folder}/registry.db")
        self.store = DirectoryStore(folder / "objects")
        self.registry = Registry(self.database)
        self.answers: list[tuple[float, float, str]] = []
        """Begun, ended, answered by."""
        self.programs: list[Program] = []
        self._seeds = itertools.count(1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.database.upgrade()
        add_task(self.database)
        async with (
            listening(self.engine.app()) as engine_url,
            listening(self.teacher.app()) as teacher_url,
            aiohttp.ClientSession() as self.http,
        ):
            given = {
                "storage.url": self.folder / "objects",
                "database.url": f"sqlite:///{self.folder}/registry.db",
                "teacher.url": f"{teacher_url}/v1",
                "engine.url": engine_url,
                "gateway.ship_seconds": SHIP_SECONDS,
            }
            self.programs = [gateway(name, self.folder, given, {}) for name in ("one", "two")]
            controller = Program(
                "controller",
                [sys.executable, THIS, "--tend"],
                logs=self.folder,
                answers=lambda: True,
                environment={
                    f"NIGHTSCHOOL_{key.upper().replace('.', '__')}": str(value)
                    for key, value in given.items()
                },
            )
            try:
                for program in [*self.programs, controller]:
                    program.start(wait=False)
                for program in self.programs:
                    await asyncio.to_thread(program.await_answer)
                callers = asyncio.create_task(self._call())
                yield
                callers.cancel()
                await asyncio.gather(callers, return_exceptions=True)
            finally:
                for program in [*self.programs, controller]:
                    program.kill()
                self.database.close()

    async def bring_in(self) -> str:
        """Open a rollout of a new adapter, and wait until somebody is answered under it."""
        name = add_adapter(self.database, self.store, self.folder, seed=next(self._seeds))
        self.registry.open_rollout(
            TASK, name, POLICY, actor="bench", why="measured", gate_override="measured"
        )
        await self.until(lambda: self.registry.route(TASK).stage == "canary")
        return name

    async def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := await asyncio.to_thread(what)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited in vain; the controller says:\n{self.tails()}")
            await asyncio.sleep(0.02)
        return value

    def tails(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in self.folder.glob("*.log"))

    def event(self, what: str) -> float:
        """When the task's newest event of that kind was written."""
        found = next(event for event in self.registry.events(TASK) if event.what == what)
        return found.time.timestamp()

    async def _call(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as under_way:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                under_way.create_task(self._one(number))

    async def _one(self, number: int) -> None:
        started = time.time()
        program = self.programs[number % len(self.programs)]
        by = ""
        with contextlib.suppress(aiohttp.ClientError):
            async with self.http.post(
                f"{program.url}/v1/chat/completions",
                json=chat("switch the kitchen light on"),
                headers={"x-session-id": f"s{number}"},
            ) as response:
                await response.read()
                by = response.headers.get("x-nightschool-answered-by", "")
        self.answers.append((started, time.time(), by))


async def measure(folder: Path, repeats: int, rate: float) -> dict[str, Any]:
    system = System(folder, rate)
    found: dict[str, list[dict[str, float]]] = {}
    async with system.running():
        for _ in range(repeats):
            for name, way in (
                ("test_all_wrong", lambda: by_test(system, 1.0)),
                ("test_30_percent_wrong", lambda: by_test(system, 0.3)),
                ("kill_switch", lambda: by_kill_switch(system)),
                ("by_hand", lambda: by_hand(system)),
            ):
                found.setdefault(name, []).append(await way())
    served = [answer for answer in system.answers if answer[2]]
    return {
        "sessions_per_second_asked_for": rate,
        "sessions_per_second_served": round(len(served) / (served[-1][1] - served[0][0]), 1),
        "repeats": repeats,
        "settings": {
            "tend_seconds": TEND_SECONDS,
            "maturity_seconds": MATURITY_SECONDS,
            "ship_seconds": SHIP_SECONDS,
            "refresh_seconds": 0.5,
            "canary_share": POLICY.steps[0],
            "margin": POLICY.margin,
        },
        "guard_microseconds_per_answer": guard_cost(folder),
        "medians": {
            name: {part: round(statistics.median(run[part] for run in runs), 3) for part in runs[0]}
            for name, runs in found.items()
        },
    }


def guard_cost(folder: Path, answers: int = 20_000) -> float:
    """What looking through an answer of 120 characters and counting it takes, in processor time."""
    adapter = AdapterRoute(f"{TASK}@{'1' * 16}", "", "", {}, None)
    route = TaskRoute(TASK, candidate=adapter, rollout_id="r", stage="canary")
    look, switch = (
        UnsafeOutput(["fire every(body|one)"]),
        KillSwitch(folder / "kills.json", burst=5),
    )
    answer = {"role": "assistant", "content": "The kitchen light is on. " * 5}
    request = chat("switch the kitchen light on")
    began = time.process_time()
    for _ in range(answers):
        unsafe = look.found(answer, request)
        switch.report(route, False, True, "accepted", unsafe=unsafe)
    return round((time.process_time() - began) / answers * 1e6, 1)


async def by_test(system: System, wrong: float) -> dict[str, float]:
    """Wrong in this share of the answers, evenly spread."""
    said = itertools.count()

    def say(*_: str) -> str:
        number = next(said)
        return "off" if int((number + 1) * wrong) > int(number * wrong) else "on"

    system.engine.mode, system.engine.say = "ok", say
    name = await system.bring_in()
    await system.until(lambda: system.registry.route(TASK).candidate is None)
    swapped = system.event("route.rolled_back")
    await asyncio.sleep(TAIL_SECONDS)
    mine = [answer for answer in system.answers if answer[2] == name]
    rollout = system.registry.rollouts(adapter=name)[0]
    assert rollout.state == "rolled_back", rollout.reason
    assigned = sorted(
        call.time.timestamp()
        for call in calls(system.store).values()
        if call.answered_by.rollout == rollout.id and call.answered_by.arm == "canary"
    )
    deciding = assigned[min(rollout.sessions, len(assigned)) - 1]
    first, last = min(answer[0] for answer in mine), max(answer[1] for answer in mine)
    return {
        "total": last - first,
        "sessions": deciding - first,
        "label_horizon": MATURITY_SECONDS,
        "log_and_look": swapped - deciding - MATURITY_SECONDS,
        "swap_to_last_answer": last - swapped,
        "canary_sessions_judged": rollout.sessions,
        "canary_sessions_answered": len(mine),
    }


async def by_kill_switch(system: System) -> dict[str, float]:
    system.engine.mode = "error"
    name = await system.bring_in()
    await system.until(lambda: system.registry.route(TASK).candidate is None)
    swapped = system.event("route.rolled_back")
    await asyncio.sleep(TAIL_SECONDS)
    system.engine.mode = "ok"
    asked = [at for at, who in system.engine.prompts.times if who == name]  # type: ignore[attr-defined]
    assert system.registry.rollouts(adapter=name)[0].state == "rolled_back"
    return {
        "total": max(asked) - min(asked),
        "registry_knows": swapped - min(asked),
        "canary_sessions_asked": len(asked),
        "canary_sessions_answered": sum(answer[2] == name for answer in system.answers),
    }


async def by_hand(system: System) -> dict[str, float]:
    system.engine.mode = "ok"
    system.engine.say = lambda *_: "on"
    name = await system.bring_in()
    await system.until(lambda: any(answer[2] == name for answer in system.answers))
    started = time.time()
    await asyncio.to_thread(rollback, system.registry, TASK, actor="bench", why="measured")
    swapped = time.time()
    await asyncio.sleep(TAIL_SECONDS)
    last = max(answer[1] for answer in system.answers if answer[2] == name)
    return {
        "total": last - started,
        "swap": swapped - started,
        "swap_to_last_answer": last - swapped,
    }


if __name__ == "__main__":
    sys.exit(main())
