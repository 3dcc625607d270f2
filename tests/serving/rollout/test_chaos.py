"""Two controllers, operators, kill switches and sudden deaths in any order: what always holds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from infra.database.open import Database
from infra.database.tables import outbox
from serving.registry.errors import (
    IllegalState,
    NothingToRollBack,
    RolloutRefused,
    RouteInvalid,
)
from serving.registry.records import TEACHER, Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import request_rollback, rollback, tend
from serving.rollout.machine import ENDED, Observation, Order
from serving.rollout.orders import give_order
from tests.contracts.servers import PostgresServer
from tests.serving.registry.world import NOW, add_adapter, add_task
from tests.serving.rollout.stage import CHANNELS, FINE, GOOD, POLICY, Killed, killed_at

observations = st.builds(
    Observation,
    loaded=st.sampled_from([True, True, True, False]),
    kill=st.sampled_from([None] * 9 + ["burst"]),
    verdict=st.sampled_from(["continue"] * 4 + ["good"] * 3 + ["bad"]),
    labels=st.sampled_from([30, 30, 0]),
    shadow_verdict=st.sampled_from(["continue"] * 9 + ["bad"]),
    shadow_pairs=st.sampled_from([5, 5, 0]),
    step_sessions=st.sampled_from([10, 0]),
    canary_sessions=st.sampled_from([30, 5, 100]),
)
whiles = st.sampled_from(
    ["nothing", "nothing", "another controller", "another, lease run out", "operator", "gateway"]
)
picks = st.integers(0, 3)
deaths = st.sampled_from([None, None, None]) | st.integers(0, 40)


class Chaos(RuleBasedStateMachine):
    template: ClassVar[Path | None] = None
    template_folder: ClassVar[tempfile.TemporaryDirectory[str]]

    def new_database(self) -> Database:
        path = self.folder / "registry.db"
        if Chaos.template is None:
            Chaos.template_folder = tempfile.TemporaryDirectory(prefix="chaos-template-")
            Chaos.template = Path(Chaos.template_folder.name) / "registry.db"
            fresh = Database(f"sqlite:///{Chaos.template}")
            fresh.upgrade()
            add_task(fresh, "mail")
            fresh.close()
        shutil.copy(Chaos.template, path)
        return Database(f"sqlite:///{path}")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.database = self.new_database()
        self.registry = Registry(self.database)
        self.now = NOW
        self.numbers = 0
        self.ended: dict[str, Rollout] = {}
        self.good: set[str] = set()
        """Rollouts of which somebody saw enough to promote them."""
        self.approved: set[str] = set()

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pick(self, which: int, *, any_state: bool = False) -> Rollout | None:
        found = self.registry.rollouts(None if any_state else "open")
        return found[which % len(found)] if found else None

    def dying(self, statement: int | None, action: Callable[[], Any]) -> None:
        if statement is None:
            action()
            return
        with killed_at(self.database, statement):
            try:
                action()
            except Killed:
                return

    @rule(
        when_open=st.sampled_from(["queue", "supersede"]),
        really=st.integers(0, 2),
        approval=st.sampled_from([False, False, True]),
    )
    def open(self, when_open: str, really: int, approval: bool) -> None:
        if really and self.registry.rollouts("open"):
            return  # else few rollouts would live long enough to end by a verdict
        self.numbers += 1
        adapter = add_adapter(self.registry, "mail", self.numbers)
        policy = replace(POLICY, when_open=when_open, approval=approval)  # type: ignore[arg-type]
        try:
            self.registry.open_rollout(
                "mail", adapter.name, policy, actor="night", why="trained", now=self.now
            )
        except RolloutRefused as refusal:
            assert "rests" in str(refusal)

    def open_an_old_one_again(self, which: int) -> None:
        rollout = self.pick(which, any_state=True)
        if rollout is None or rollout.open:
            return
        try:
            again = self.registry.open_rollout(
                "mail", rollout.adapter, POLICY, actor="night", why="again", now=self.now
            )
        except RolloutRefused:
            return
        assert self.registry.adapter(rollout.adapter).state == "registered"
        assert again.open and again.id != rollout.id

    @rule(
        which=picks,
        seen=observations,
        other_seen=observations,
        meanwhile=whiles,
        dies=deaths,
    )
    def tend(
        self,
        which: int,
        seen: Observation,
        other_seen: Observation,
        meanwhile: str,
        dies: int | None,
    ) -> None:
        rollout = self.pick(which)
        if rollout is None:
            return

        def look(what: Observation) -> Callable[[Rollout], Observation]:
            def observe(current: Rollout) -> Observation:
                if what.verdict == "good" and what.labels and what.loaded and what.kill is None:
                    self.good.add(current.id)
                return what

            return observe

        def observe(current: Rollout) -> Observation:
            if meanwhile.startswith("another"):
                ahead = timedelta(minutes=5 if "run out" in meanwhile else 0)
                tend(
                    self.registry,
                    current.id,
                    look(other_seen),
                    self.now + ahead,
                    "two",
                    CHANNELS,
                )
            elif meanwhile == "operator":
                self.roll_back(None)
            elif meanwhile == "gateway":
                self.kill(0)
            return look(seen)(current)

        self.dying(
            dies,
            lambda: tend(self.registry, rollout.id, observe, self.now, "one", CHANNELS),
        )
        self.now += timedelta(minutes=6)

    @rule(which=picks, seen=st.sampled_from([FINE, GOOD, GOOD]), dies=deaths)
    def go_on(self, which: int, seen: Observation, dies: int | None) -> None:
        """A rollout that is doing well."""
        self.tend(which, seen, seen, "nothing", dies)

    @rule(which=picks, seen=st.sampled_from([FINE, GOOD]), other=observations, meanwhile=whiles)
    def go_on_in_company(
        self, which: int, seen: Observation, other: Observation, meanwhile: str
    ) -> None:
        self.tend(which, seen, other, meanwhile, None)

    @rule(
        which=picks,
        what=st.sampled_from(["pause", "resume", "resume", "approve", "approve", "abort"]),
        dies=deaths,
    )
    def order(self, which: int, what: Order, dies: int | None) -> None:
        """A person's order; killed in the middle, it happened or it did not."""
        rollout = self.pick(which)
        if rollout is None:
            return

        def give() -> None:
            try:
                give_order(
                    self.registry,
                    rollout.id,
                    what,
                    actor="ann",
                    why="no reason",
                    now=self.now,
                    channels=CHANNELS,
                )
            except IllegalState:
                return

        self.dying(dies, give)
        if what == "approve" and self.registry.rollout(rollout.id).approval == "given":
            self.approved.add(rollout.id)

    @rule(
        what=st.sampled_from(
            ["nothing"] * 4 + ["operator", "teacher", "gateway", "reopen", "wait"]
        ),
        which=picks,
    )
    def disturb(self, what: str, which: int) -> None:
        if what == "operator":
            self.roll_back(None)
        elif what == "teacher":
            self.roll_back(TEACHER)
        elif what == "gateway":
            self.kill(which)
        elif what == "reopen":
            self.open_an_old_one_again(which)
        elif what == "wait":
            self.now += timedelta(days=8)
        else:
            self.now += timedelta(minutes=30)

    def roll_back(self, to: str | None) -> None:
        before = self.registry.route("mail")
        try:
            after = rollback(
                self.registry,
                "mail",
                to,
                actor="ann",
                why="no",
                now=self.now,
                channels=CHANNELS,
            )
        except NothingToRollBack:
            assert before.champion == TEACHER and before.candidate is None
            return
        except RouteInvalid as error:
            raise AssertionError("a rollback chose a target that may not answer") from error
        assert after.candidate is None and after.weight == 0
        if before.candidate is None:
            assert after.champion != before.champion

    def kill(self, which: int) -> None:
        route = self.registry.route("mail")
        names = [name for name in (route.candidate, route.champion) if name not in (None, TEACHER)]
        if not names:
            return
        name = names[which % len(names)]
        assert name is not None
        assert request_rollback(
            self.registry, "mail", name, "burst", "gateway", now=self.now, channels=CHANNELS
        )
        assert name not in vars(self.registry.route("mail")).values()

    @invariant()
    def the_route_says_what_the_open_rollout_says(self) -> None:
        if not hasattr(self, "registry"):
            return
        route = self.registry.route("mail")
        still_open = self.registry.rollouts("open")
        holders = [rollout for rollout in still_open if rollout.id == route.rollout_id]
        assert len(still_open) <= 2, "one on the route and one in the queue at most"
        assert all(rollout.state == "pending" for rollout in still_open if rollout not in holders)
        if route.rollout_id is None:
            assert (route.candidate, route.stage, route.weight) == (None, "none", 0)
            return
        (holder,) = holders
        stage = {"pending": "none", "shadow": "shadow", "canary": "canary"}[holder.state]
        weight = holder.policy.steps[holder.step] if holder.state == "canary" else 0
        if holder.paused:
            stage, weight = "none", 0
        assert (route.candidate, route.stage, route.weight, route.salt) == (
            holder.adapter,
            stage,
            weight,
            holder.salt,
        )
        assert holder.champion == route.champion

    @invariant()
    def verdicts_are_latched(self) -> None:
        if not hasattr(self, "registry"):
            return
        for rollout in self.registry.rollouts(ENDED):
            assert self.ended.setdefault(rollout.id, rollout) == rollout
            if rollout.state == "promoted":
                assert rollout.id in self.good
                assert not rollout.policy.approval or rollout.id in self.approved
            assert not rollout.paused
            if rollout.state == "rolled_back":
                assert self.registry.adapter(rollout.adapter).state == "rejected"

    @invariant()
    def a_rejected_adapter_never_answers(self) -> None:
        if not hasattr(self, "registry"):
            return
        route = self.registry.route("mail")
        for name in (route.champion, route.candidate):
            if name not in (None, TEACHER):
                assert self.registry.adapter(name).state == "registered"
        expected = "candidate" if route.champion == TEACHER else "specialized"
        assert self.registry.task("mail").state == expected

    @invariant()
    def every_change_is_told_once_and_in_order(self) -> None:
        if not hasattr(self, "registry"):
            return
        history = list(reversed(self.registry.history("mail", limit=10_000)))
        version, route = 0, None
        for event in history:
            if not event.what.startswith("route."):
                continue
            assert event.previous["version"] == version
            assert event.current["version"] == version + 1
            if route is not None:
                assert {**event.previous, "fence": None} == {**route, "fence": None}
            version, route = version + 1, event.current
        if route is not None:
            present = self.registry.route("mail").to_json()
            assert {**present, "fence": None} == {**route, "fence": None}
        for rollout in self.registry.rollouts(ENDED):
            ends = [
                event
                for event in history
                if event.subject == rollout.id and event.current["state"] in ENDED
            ]
            assert len(ends) == 1
            told = self.messages(f"rollout:{rollout.id}:{rollout.state}:{rollout.step}")
            assert told == (0 if rollout.state == "superseded" else 1)

    def messages(self, key: str) -> int:
        with self.database.read() as connection:
            return len(connection.execute(select(outbox.c.id).where(outbox.c.key == key)).all())


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_same_on_postgresql(postgres: PostgresServer) -> None:
    class PostgresChaos(Chaos):
        def new_database(self) -> Database:
            database = Database(postgres.new_database(), pool_size=2)
            database.upgrade()
            add_task(database, "mail")
            return database

    run_state_machine_as_test(PostgresChaos, settings=settings(TestChaos.settings, max_examples=4))
