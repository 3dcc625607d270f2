"""Rollouts whose controllers, gateways and operators are killed all the time: does each end as it must?

Every rollout has an ending decided beforehand (shown good, shown bad, killed by a gateway, rolled back
by a person, silence). Two shares:

* ``scripted``: in this process. Each action (opening, tending by two controllers that get into each
  other's way, orders, the gateway's message) dies before a random statement of its own with a chance
  of a half, commits included, and the next one finds what it left;
* ``processes``: two controllers and a gateway's messenger tend the rollouts as processes of their own,
  and get SIGKILL at random moments until all rollouts have ended.

Counted: rollouts that never end (stuck), promoted more than once, rollbacks that were ordered or
decided and did not come, and promotions of a digest that had been rolled back, which is opened again
and again on purpose.

    python bench/rollout_chaos.py [--rollouts 1000] [--share-processes 0.1] [--quick] [--json FILE]

Prints one JSON object. Exit status 0 when all four are 0. How often processes die depends on how fast
they are; all else on the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.programs import scratch
from infra.calls.record import utc_now
from infra.database.open import Database
from serving.gateway.guard import KillSwitch
from serving.gateway.kills import deliver
from serving.gateway.routes import AdapterRoute, TaskRoute
from serving.registry.errors import IllegalState, NothingToRollBack, RegistryError, RolloutRefused
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import request_rollback, rollback, tend
from serving.rollout.machine import Observation
from serving.rollout.orders import give_order
from tests.serving.registry.world import NOW, add_adapter, add_task
from tests.serving.rollout.stage import BAD, FINE, GOOD, POLICY, Killed, killed_at

ENDINGS = ("good", "bad", "kill", "operator", "silence", "approved")
ROLLED_BACK = ("bad", "kill", "operator")
SILENT = Observation(loaded=True, shadow_pairs=5)
LEASE_SECONDS = 0.1
LIFE_SECONDS = (0.05, 0.8)
"""How long a process lives before it is killed."""
PROCESS_DEADLINE_SECONDS = (10.0, 0.3)
"""Of a state, and for each rollout beside it: long enough for the good ones, short for the silent."""
GIVE_UP_SECONDS = 300.0


@dataclass
class Tally:
    rollouts: int = 0
    kills: int = 0
    stuck: int = 0
    double_promotions: int = 0
    lost_rollbacks: int = 0
    promotions_of_rolled_back: int = 0
    ended: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ended": dict(sorted(self.ended.items()))}

    @property
    def passed(self) -> bool:
        return not (
            self.stuck
            + self.double_promotions
            + self.lost_rollbacks
            + self.promotions_of_rolled_back
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--share-processes", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="60 rollouts")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    options = parser.parse_args(arguments)
    total = 60 if options.quick else options.rollouts
    real = round(total * options.share_processes)
    started = time.monotonic()
    with scratch("rollout-chaos") as folder:
        tallies = {
            "scripted": scripted(folder, total - real, options.seed),
            "processes": processes(folder, real, options.seed),
        }
    body = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
        **{name: tally.to_json() for name, tally in tallies.items()},
    }
    text = json.dumps(body, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if all(tally.passed for tally in tallies.values()) else 1


# In this process


def scripted(folder: Path, count: int, seed: int) -> Tally:
    """Play rollouts one after the other, each in a registry of its own."""
    template = folder / "template.db"
    fresh = Database(f"sqlite:///{template}")
    fresh.upgrade()
    add_task(fresh, "mail")
    fresh.close()
    tally = Tally()
    for number in range(count):
        path = folder / "scripted.db"
        shutil.copy(template, path)
        database = Database(f"sqlite:///{path}")
        Script(database, random.Random(seed * 1_000_003 + number), tally).play()
        database.close()
        for left in folder.glob("scripted.db*"):
            left.unlink()
    return tally


class Script:
    """One rollout, from its opening to its end and a little beyond."""

    def __init__(self, database: Database, chance: random.Random, tally: Tally) -> None:
        self.database = database
        self.registry = Registry(database)
        self.chance = chance
        self.tally = tally
        self.now = NOW
        self.ending = chance.choice(ENDINGS)
        self.turn_of_fate = chance.randint(0, 6)

    def play(self) -> None:
        adapter = add_adapter(self.registry, "mail", 1).name
        policy = replace(POLICY, approval=self.ending == "approved")
        while not self.registry.rollouts():
            self.may_die(
                lambda: self.registry.open_rollout(
                    "mail", adapter, policy, actor="night", why="trained", now=self.now
                )
            )
        (rollout,) = self.registry.rollouts()
        for turn in range(self.turn_of_fate + self.chance.randint(1, 6)):
            self.may_die(lambda: self.tend(rollout, turn >= self.turn_of_fate))  # noqa: B023
            self.orders(rollout, turn)
            self.now += timedelta(minutes=self.chance.randint(0, 5))
        self.recover(rollout, adapter)
        check(self.registry, "mail", rollout.id, adapter, self.ending, self.tally)

    def sees(self, decided: bool) -> Observation:
        if not decided or self.ending == "operator":
            return FINE
        return {"good": GOOD, "approved": GOOD, "bad": BAD}.get(self.ending, SILENT)

    def tend(self, rollout: Rollout, decided: bool) -> None:
        def observe(_: Rollout) -> Observation:
            if self.chance.random() < 0.3:
                # Another controller, with a clock beyond this one's lease, gets in between.
                ahead = self.now + timedelta(minutes=2)
                tend(self.registry, rollout.id, lambda _: self.sees(decided), ahead, "two")
            return self.sees(decided)

        tend(self.registry, rollout.id, observe, self.now, "one", ("console",))

    def orders(self, rollout: Rollout, turn: int) -> None:
        """What gateways and people do, who try again until they hear that it is done."""
        if turn >= self.turn_of_fate:
            if self.ending == "kill":
                self.may_die(lambda: self.kill(rollout))
            elif self.ending == "operator":
                self.may_die(self.roll_back)
            elif self.ending == "approved":
                self.may_die(lambda: self.order(rollout, "approve"))
        if self.chance.random() < 0.2:
            self.may_die(lambda: self.order(rollout, "pause"))
        if self.chance.random() < 0.4:
            self.may_die(lambda: self.order(rollout, "resume"))

    def kill(self, rollout: Rollout) -> None:
        request_rollback(self.registry, "mail", rollout.adapter, "burst", "gateway", now=self.now)

    def roll_back(self) -> None:
        try:
            rollback(self.registry, "mail", actor="ann", why="odd", now=self.now)
        except NothingToRollBack:
            return

    def order(self, rollout: Rollout, what: Any) -> None:
        try:
            give_order(self.registry, rollout.id, what, actor="ann", why="odd", now=self.now)
        except IllegalState:
            return

    def recover(self, rollout: Rollout, adapter: str) -> None:
        """Nobody dies any more. Time passes, and the adapter is offered again and again."""
        for turn in range(30):
            if self.ending == "kill":
                self.kill(rollout)
            elif self.ending == "operator":
                self.roll_back()
            self.order(rollout, "resume")
            tend(self.registry, rollout.id, lambda _: self.sees(True), self.now, "one")
            self.order(rollout, "approve")
            # A while that every lease runs out in; then one that every deadline passes in.
            self.now += timedelta(minutes=2) if turn < 15 else timedelta(days=8)
            if not self.registry.rollout(rollout.id).open and turn > 20:
                offer_again(self.registry, adapter, self.now)
                for again in self.registry.rollouts("open"):
                    tend(self.registry, again.id, lambda _: GOOD, self.now, "one")

    def may_die(self, action: Callable[[], Any]) -> None:
        if self.chance.random() < 0.5:
            action()
            return
        with killed_at(self.database, self.chance.randint(0, 30)):
            try:
                action()
            except Killed:
                self.tally.kills += 1


# Processes


def processes(folder: Path, count: int, seed: int) -> Tally:
    """All rollouts in one registry, tended by processes that are killed with -9."""
    chance = random.Random(seed)
    url = f"sqlite:///{folder}/processes.db"
    tally = Tally()
    database = Database(url)
    database.upgrade()
    registry = Registry(database)
    endings: dict[str, str] = {}
    switch = KillSwitch(folder / "kills.json", burst=1)
    deadline = PROCESS_DEADLINE_SECONDS[0] + PROCESS_DEADLINE_SECONDS[1] * count
    policy = replace(
        POLICY,
        shadow_deadline_seconds=deadline,
        canary_deadline_seconds=deadline,
        maturity_seconds=1,
        cooldown_seconds=0,
    )
    for number in range(count):
        task = add_task(database, f"task-{number}")
        adapter = add_adapter(registry, task, 1).name
        rollout = registry.open_rollout(task, adapter, policy, actor="night", why="trained")
        endings[rollout.id] = ENDINGS[number % 4] if number % 4 != 3 else "silence"
        if endings[rollout.id] == "kill":
            # The gateway has said so and kept it; telling the registry is its messenger's work.
            route = AdapterRoute(adapter, "", "", {}, None)
            switch.report(TaskRoute(task, candidate=route, rollout_id=rollout.id), True, False, "x")
    database.close()
    jobs: list[Callable[[], None]] = [
        lambda: _controller(url, endings, "one"),
        lambda: _controller(url, endings, "two"),
        lambda: _messenger(url, folder / "kills.json"),
    ]
    began = time.monotonic()
    while count and time.monotonic() - began < GIVE_UP_SECONDS:
        alive = [_fork(job) for job in jobs]
        time.sleep(chance.uniform(*LIFE_SECONDS))
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            tally.kills += 1
        if not registry.rollouts("open"):
            break
        database.close()
    for rollout_id, ending in endings.items():
        rollout = registry.rollout(rollout_id)
        offer_again(registry, rollout.adapter, utc_now() + timedelta(days=1))
        for again in registry.rollouts("open", adapter=rollout.adapter):
            if again.id != rollout_id:
                tend(registry, again.id, lambda _: GOOD, utc_now() + timedelta(days=1), "one")
        check(registry, rollout.task_id, rollout_id, rollout.adapter, ending, tally)
    database.close()
    return tally


def _controller(url: str, endings: dict[str, str], name: str) -> None:
    registry = Registry(Database(url))
    while True:
        found = registry.rollouts("open")
        # In another order each life, or the last ones would never be reached.
        random.Random(os.getpid()).shuffle(found)
        for rollout in found:
            seen = {"good": GOOD, "bad": BAD}.get(endings[rollout.id], SILENT)
            try:
                tend(
                    registry,
                    rollout.id,
                    lambda _, s=seen: s,
                    actor=name,
                    lease_seconds=LEASE_SECONDS,
                )
            except RegistryError as error:
                print(f"{name}: {error}", file=sys.stderr)
        time.sleep(0.005)


def _messenger(url: str, path: Path) -> None:
    database = Database(url)
    while True:
        deliver(KillSwitch(path, burst=1), lambda: database)
        time.sleep(0.005)


def _fork(job: Callable[[], None]) -> int:
    # A fork starts in a millisecond, so there is time to be killed in the middle of the work.
    pid = os.fork()
    if pid == 0:
        try:
            job()
        finally:
            os._exit(1)
    return pid


# What must hold


def offer_again(registry: Registry, adapter: str, now: Any) -> None:
    """Somebody asks for it once more, whatever became of it."""
    task = adapter.partition("@")[0]
    try:
        registry.open_rollout(task, adapter, POLICY, actor="night", why="again", now=now)
    except RolloutRefused:
        return


def check(
    registry: Registry, task: str, rollout_id: str, adapter: str, ending: str, tally: Tally
) -> None:
    """Count what must not be, from the events: they say what happened and not what should have."""
    rollout = registry.rollout(rollout_id)
    tally.rollouts += 1
    tally.ended[f"{ending}: {rollout.state}"] += 1
    tally.stuck += rollout.open
    history = list(reversed(registry.history(task, 10_000)))
    promotions = [
        event
        for event in history
        if event.what == "rollout.promoted" and event.subject == rollout_id
    ]
    moves = [
        event
        for event in history
        if event.what == "route.promoted" and event.evidence["rollout"] == rollout_id
    ]
    tally.double_promotions += len(promotions) > 1 or len(moves) > 1
    route = registry.route(task)
    rejected = registry.adapter(adapter).state == "rejected"
    still_there = adapter in (route.champion, route.candidate)
    if ending in ROLLED_BACK or rollout.state == "rolled_back":
        tally.lost_rollbacks += not rejected or still_there
    off = [
        place
        for place, event in enumerate(history)
        if event.what == "adapter.rejected" and event.subject == adapter
    ]
    if off:
        tally.promotions_of_rolled_back += sum(
            event.what == "route.promoted" and event.current["champion"] == adapter
            for event in history[off[0] :]
        )


if __name__ == "__main__":
    sys.exit(main())
