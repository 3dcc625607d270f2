"""One day, one night and the next day, on one machine, on real input."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.demo import summary as summaries
from flows.demo.player import Tally, play
from flows.demo.settings import demo_variables
from flows.demo.site import OneMachine, Site
from flows.demo.stages import DemoFailed, PlayProgress, Stages, follow
from flows.demo.traffic import TrafficSession, sessions
from flows.orchestrator import FlowRun, OrchestratorDown, PastRun
from flows.reporting import report_url
from flows.stack.processes import Stack, StackError
from flows.stack.services import prefect_ui_url
from flows.wiring import Context, open_context
from infra.settings.model import Settings
from infra.settings.sources import load_settings
from trainers.discover import assignments

MARKER = ".nightschool-demo"
AGENTS = 12
NIGHT_LIMIT_SECONDS = 3600.0
DEPLOYED_SECONDS = 240.0
OVERRIDE = "a drill: this adapter was trained on shuffled answers, to see it rolled back"


@dataclass(frozen=True)
class Pace:
    """How much is played."""

    day_one_sessions: int = 760
    batch_sessions: int = 40
    """Day two is played in batches, until no rollout is open."""
    batch_seconds: float = 4.0
    """A batch lasts at least this long: verdicts need time as well as sessions."""
    max_batches: int = 80
    drill_batches: int = 30
    kinds: tuple[str, ...] | None = None
    """Kinds of traffic; None for all."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings on top of the demo's own, by dotted key."""
    night_tries: int = 1
    """A night that does not complete is asked for again, so often in all."""


def play_demo(
    folder: Path, port_base: int, seed: int, *, keep_running: bool, pace: Pace | None = None
) -> int:
    """Play it all; the exit status: 0 only if one adapter was promoted and the bad one taken back.

    Ctrl-C and SIGTERM stop every process that was started.
    """
    pace = pace or Pace()
    signal.signal(signal.SIGTERM, _interrupt)
    stages = Stages(lambda line: print(line, flush=True))
    try:
        _empty(folder)
        # The demo is the same everywhere: what this shell has set for other uses does not count.
        for name in [name for name in os.environ if name.startswith(("NIGHTSCHOOL_", "PREFECT_"))]:
            del os.environ[name]
        os.environ.update(demo_variables(folder, port_base, seed, pace.settings))
        with Stack(folder / "log", stages.say) as stack:
            settings = load_settings()
            site = OneMachine(folder, port_base, settings, stack, stages.say)
            status = Demo(folder, seed, pace, stages, site, settings).play()
            if keep_running:
                stages.say("The stack keeps running; Ctrl-C stops it.")
                while True:
                    stack.check()
                    time.sleep(1)
            return status
    except (DemoFailed, StackError, OrchestratorDown) as error:
        print(f"nightschool demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nightschool demo: stopped; every process it started has ended", file=sys.stderr)
        return 130


class Demo:
    """The stages in order; what one learns the next needs."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        pace: Pace,
        stages: Stages,
        site: Site,
        settings: Settings,
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._pace = pace
        self._stages = stages
        self._site = site
        self._settings = settings
        self.captured = Tally()
        self.asked_again = 0
        """Nights beyond the first that it took."""
        self._day_two = Tally()
        self._batches = 0
        self._reports: list[str] = []

    def play(self) -> int:
        stages = self._stages
        with stages.stage(
            "start", "Prefect, flows, object store, registry, engine, gateway, teacher"
        ):
            self._start()
        with open_context(self._settings) as context:
            with stages.stage("day one", "agents work; the teacher answers; calls are logged"):
                self._day_one(context)
            with stages.stage("night", "ingest, discover, plan, train, judge, gate, register"):
                self._night(context, {"reason": "the demo's night", "by_hand": True})
            with stages.stage("day two", "shadow, canary, promotion"):
                self._play_rollouts(context, self._day_two, None, self._pace.max_batches)
            with stages.stage("drill", "a deliberately bad adapter, and its rollback"):
                bad = self._drill(context)
            with stages.stage("evening", "the rest of the logs is taken in"):
                self._run(context, "ingest", {})
            return self._sum_up(context, bad)

    def _start(self) -> None:
        answers = {
            call.key: call.answer
            for batch in range(1 + self._pace.max_batches + self._pace.drill_batches)
            for session in self._sessions(batch)
            for call in session.calls
        }
        self._site.start(answers)

    def _sessions(self, batch: int) -> list[TrafficSession]:
        """Batch 0 is day one; the others are day two's, each of new texts."""
        count = self._pace.batch_sessions if batch else self._pace.day_one_sessions
        return sessions(1000 * self._seed + batch, count, self._pace.kinds)

    def _day_one(self, context: Context) -> None:
        traffic = self._sessions(0)
        total = sum(len(session.calls) for session in traffic)
        self.captured.merge(self._play(traffic, "day one", total))
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.captured.by_kind.items())
        self._stages.say(f"   {self.captured.calls} calls: {kinds}")
        self._await_deployments(context)

    def _night(self, context: Context, parameters: dict[str, Any]) -> None:
        run = self._run(context, "night", parameters)
        for task in context.orchestrator().task_runs(run.id):
            # Parallel trainings add up: what is shown is the work, not the wait.
            name = f"night: {task['name'].split()[0]}"
            seconds = float(task.get("total_run_time") or 0)
            self._stages.seconds[name] = self._stages.seconds.get(name, 0.0) + seconds
        for version in (
            v for task in context.registry.tasks() for v in context.registry.datasets(task.id)
        ):
            key = f"reports/drift/{version.task_id}-{version.digest[:16]}/drift.html"
            if any(item.key == key for item in context.store.list(key)):
                self._reports.append(report_url(context, key))
        for adapter in context.registry.adapters():
            card = context.registry.scorecards(adapter.name)[0]
            self._stages.say(f"   {adapter.name}: gate {card.verdict}")
            for reason in card.gate["reasons"][:3]:
                self._stages.say(f"      {reason}")

    def _play_rollouts(self, context: Context, into: Tally, kind: str | None, batches: int) -> None:
        """Play new traffic, a batch after the other, until no rollout is open any more."""
        shown: dict[str, tuple[str, int]] = {}
        for _ in range(batches):
            self._batches += 1
            traffic = self._sessions(self._batches)
            if kind is not None:
                traffic = [session for session in traffic if session.kind == kind]
            ends = time.monotonic() + self._pace.batch_seconds
            tally = self._play(traffic, "day two", None)
            into.merge(tally)
            self.captured.merge(tally)
            if self._batches % 4 == 0:
                self._stages.say(
                    f"   {into.calls} calls, {into.small_share:.0%} by the small model"
                )
            open_left = False
            for rollout in context.registry.rollouts():
                if shown.get(rollout.id) != (rollout.state, rollout.step):
                    shown[rollout.id] = (rollout.state, rollout.step)
                    self._stages.say(f"   {rollout.adapter} is {rollout.state}: {rollout.reason}")
                open_left = open_left or rollout.open
            if not open_left:
                return
            time.sleep(max(0.0, ends - time.monotonic()))
        self._stages.say("   the traffic of the day is used up with a rollout still open")

    def _drill(self, context: Context) -> str | None:
        """Train a bad adapter for a task that the small model answers, and let it past the gate."""
        promoted = context.registry.rollouts("promoted")
        if not promoted:
            raise DemoFailed(
                "no adapter was promoted, so there is nothing to put at risk in a drill"
            )
        task = promoted[0].task_id
        before = {adapter.name for adapter in context.registry.adapters(task)}
        parameters = {"reason": "drill", "only": task, "drill": True, "gate_override": OVERRIDE}
        self._run(context, "night", parameters)
        bad = next(a.name for a in context.registry.adapters(task) if a.name not in before)
        self._stages.say(f"   {bad}: trained on shuffled answers, past the gate by a flag")
        kind = self._kind_of(context, task)
        self._play_rollouts(context, Tally(), kind, self._pace.drill_batches)
        return bad

    def _kind_of(self, context: Context, task: str) -> str:
        pointer = assignments.latest(context.database)
        members = assignments.read(context.store, pointer) if pointer else {}
        kinds = Counter(
            self.captured.call_kinds[call]
            for call, owner in members.items()
            if owner == task and call in self.captured.call_kinds
        )
        return kinds.most_common(1)[0][0]

    def _run(self, context: Context, flow: str, parameters: dict[str, Any]) -> FlowRun:
        orchestrator = context.orchestrator()
        key: str | None = None
        for left in reversed(range(self._pace.night_tries)):
            run = orchestrator.start(flow, parameters, idempotency_key=key)
            ui = prefect_ui_url(self._settings)
            self._stages.say(f"   {flow} runs in Prefect: {ui}/runs/flow-run/{run.id}")
            try:
                return follow(
                    orchestrator,
                    run,
                    self._stages.say,
                    limit_seconds=NIGHT_LIMIT_SECONDS,
                    alive=self._site.check,
                )
            except DemoFailed as error:
                if not left:
                    raise
                from flows.takeover import successor  # imports Prefect, which is not needed before

                # What it has done is kept: the next one does the rest. By the key of whoever takes
                # it over, so that both are the same run.
                self.asked_again += 1
                self._stages.say(f"   {error}: asking for it again")
                key = successor(PastRun(run.id, run.name, flow, run.state, parameters, key or ""))
        raise AssertionError("no tries")

    def _await_deployments(self, context: Context) -> None:
        orchestrator = context.orchestrator()
        deadline = time.monotonic() + DEPLOYED_SECONDS
        while not orchestrator.has_deployment("rollback"):
            self._site.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"the flows were not deployed: see {self._folder}/log/flows.log")
            time.sleep(1)

    def _play(self, traffic: Iterable[TrafficSession], what: str, total: int | None) -> Tally:
        self._site.check()
        tally = asyncio.run(
            play(
                self._site.gateways,
                traffic,
                concurrency=AGENTS,
                on_call=PlayProgress(self._stages.say, what, total),
            )
        )
        if tally.failed:
            raise DemoFailed(
                f"{tally.failed} calls failed at the gateway: see {self._folder}/log/gateway.log"
            )
        return tally

    def _sum_up(self, context: Context, bad: str | None) -> int:
        links = {
            "prefect": prefect_ui_url(self._settings),
            "evidently": self._reports[0] if self._reports else "",
            "gateway": self._site.gateways[0],
        }
        found = summaries.summarize(
            context, self.captured, self._day_two, self._stages.seconds, links
        )
        file = self._folder / "summary.json"
        summaries.write(found, file)
        self._stages.say("== summary")
        for line in summaries.rendered(found):
            print(f"  {line}", flush=True)
        inbox = self._folder / "slack.jsonl"
        heard = len(inbox.read_text().splitlines()) if inbox.exists() else 0
        print(f"  Slack      {heard} messages at its local end: {inbox}", flush=True)
        good = summaries.succeeded(found, bad)
        verdict = "an adapter was promoted and the bad one was rolled back" if good else "FAILED"
        self._stages.say(f"{verdict}; {file} (the links answer while the stack runs)")
        return 0 if good else 1


def _empty(folder: Path) -> None:
    """Start clean, but never empty a folder that is not the demo's own."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise DemoFailed(f"{folder} holds something else than a demo: name another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
