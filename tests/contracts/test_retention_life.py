"""Any course of events, with the collector at any time: what is named is there. On SQLite."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from serving.registry.errors import RegistryError, RolloutRefused
from serving.registry.records import TEACHER
from serving.registry.registry import Registry
from serving.registry.retention.collecting import collect
from serving.rollout.controller import rollback
from tests.contracts.registry_steps import BY
from tests.serving.registry.retention.shelves import (
    AT_ANY_TIME,
    AT_ONCE,
    GRACE,
    require_sound,
    shelve,
    whole,
)
from tests.serving.registry.world import NOW, add_task


class Life(RuleBasedStateMachine):
    """Adapters come, are rolled out, promoted, taken back; the collector runs at any time."""

    folder: Path
    number = 0

    @initialize()
    def begin(self) -> None:
        Life.number += 1
        place = self.folder / str(Life.number)
        self.database = Database(f"sqlite:///{place}/ns.db")
        self.database.upgrade()
        add_task(self.database, "mail")
        self.registry = Registry(self.database)
        self.store = DirectoryStore(place / "objects")
        self.count = 0
        self.now = NOW

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()

    @rule()
    def train(self) -> None:
        shelve(self.registry, self.store, "mail", self.count)
        self.count += 1

    @rule(pick=st.integers(0, 9))
    def roll_out(self, pick: int) -> None:
        names = [adapter.name for adapter in self.registry.adapters()]
        if names:
            try:
                self.registry.open_rollout(
                    "mail", names[pick % len(names)], replace(AT_ANY_TIME), now=self.now, **BY
                )
            except RolloutRefused:
                return

    @rule(pick=st.integers(0, 9))
    def promote_by_hand(self, pick: int) -> None:
        route = self.registry.route("mail")
        names = [adapter.name for adapter in self.registry.adapters()]
        if names and route.rollout_id is None:
            try:
                self.registry.set_route(
                    "mail",
                    route.version,
                    None,
                    champion=names[pick % len(names)],
                    now=self.now,
                    **BY,
                )
            except RegistryError:
                return

    @rule(to_teacher=st.booleans())
    def take_back(self, to_teacher: bool) -> None:
        try:
            rollback(self.registry, "mail", TEACHER if to_teacher else None, now=self.now, **BY)
        except RegistryError:
            return

    @rule(hours=st.integers(0, 72))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule(at_once=st.booleans())
    def collect(self, at_once: bool) -> None:
        collect(self.database, self.store, AT_ONCE if at_once else GRACE, self.now)

    @invariant()
    def named_is_whole(self) -> None:
        if not hasattr(self, "registry"):
            return
        require_sound(self.registry, self.store)
        route = self.registry.route("mail")
        named = {
            route.champion,
            route.candidate,
            *(r.adapter for r in self.registry.rollouts("open")),
        }
        for name in named - {None, TEACHER}:
            assert whole(self.store, self.registry.adapter(str(name)).location)


def test_no_course_of_events_ends_with_something_named_and_not_there(tmp_path: Path) -> None:
    Life.folder = tmp_path
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
