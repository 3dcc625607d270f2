"""Tending a rollout against a real database: what changes, together, once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
from sqlalchemy import select

from infra.database.leases import acquire
from infra.database.open import Database
from infra.database.tables import outbox
from serving.registry.errors import (
    CannotJoin,
    NothingToRollBack,
    RolloutRefused,
    RouteInvalid,
    UnknownRollout,
    UnknownTask,
)
from serving.registry.records import TEACHER, Rollout
from serving.registry.registry import Registry
from serving.registry.routes import touch_route
from serving.rollout import controller
from serving.rollout.controller import request_rollback, rollback, tend
from serving.rollout.machine import Observation
from tests.serving.registry.world import NOW, add_adapter, add_task
from tests.serving.rollout.stage import (
    BAD,
    CHANNELS,
    FINE,
    GOOD,
    POLICY,
    Killed,
    bring_to,
    copy_of,
    killed_at,
    later,
    look,
    snapshot,
)

BY = {"actor": "ann", "why": "it answers nonsense"}


@pytest.fixture
def registry(database: Database) -> Registry:
    add_task(database, "mail")
    return Registry(database)


@pytest.fixture
def each_registry(each_database: Database) -> Registry:
    add_task(each_database, "mail")
    return Registry(each_database)


def messages(registry: Registry) -> list[dict[str, Any]]:
    with registry.database.read() as connection:
        return list(connection.execute(select(outbox.c.body).order_by(outbox.c.id)).scalars())


def chain_is_whole(registry: Registry, task_id: str = "mail") -> None:
    """The route's events follow one from the other without a gap, up to the present route."""
    changes = [
        event
        for event in reversed(registry.events(task_id, limit=1000))
        if event.what.startswith("route.")
    ]
    for sooner, later_one in pairwise(changes):
        assert sooner.current["version"] + 1 == later_one.current["version"]
        assert {**later_one.previous, "fence": 0} == {**sooner.current, "fence": 0}
    if changes:
        assert {**changes[-1].current, "fence": 0} == {
            **registry.route(task_id).to_json(),
            "fence": 0,
        }


# The way in


def test_from_pending_to_champion(each_registry: Registry) -> None:
    registry = each_registry
    adapter = add_adapter(registry, "mail", 1)
    rollout = registry.open_rollout("mail", adapter.name, POLICY, actor="night", why="x", now=NOW)
    seen_by: list[str] = []

    def observe(current: Rollout) -> Observation:
        seen_by.append(current.state)
        return replace(FINE, verdict="good" if current.step == 1 else "continue")

    routes = [registry.route("mail")]
    for minute in range(4):
        rollout = tend(registry, rollout.id, observe, later(minute), "test", CHANNELS)
        routes.append(registry.route("mail"))
    assert seen_by == ["pending", "shadow", "canary", "canary"]
    assert [(route.stage, route.weight) for route in routes] == [
        ("none", 0),
        ("shadow", 0),
        ("canary", 0.1),
        ("canary", 0.5),
        ("none", 0),
    ]
    assert rollout.state == "promoted" and rollout.sessions == 30
    assert (routes[-1].champion, routes[-1].candidate, routes[-1].rollout_id) == (
        adapter.name,
        None,
        None,
    )
    assert registry.task("mail").state == "specialized"
    assert len({route.salt for route in routes[:4]}) == 1, "one salt for the whole rollout"
    chain_is_whole(registry)
    said = messages(registry)
    assert [(body["title"], body["progress"]) for body in said] == [
        ("Shadow started: mail", True),
        ("Canary started: mail", False),
        ("Canary raised: mail", True),
        ("Adapter promoted: mail", False),
    ]
    assert {body["thread"] for body in said} == {f"rollout:{rollout.id}"}
    assert {body["topic"] for body in said} == {"task:mail"}, "one task's messages keep their order"
    assert f"{adapter.name} answers 10% of the sessions" in said[1]["exposed"]
    assert f"Now: {adapter.name} answers all sessions." in said[3]["exposed"]
    assert said[3]["undo"] == "nightschool rollback mail"
    assert said[1]["evidence"]["canary_sessions"] == 30
    assert said[1]["evidence"]["e_good"] == 3.0
    # Tending what has ended observes nothing and changes nothing.
    before = snapshot(registry.database)
    assert tend(registry, rollout.id, observe, later(9), "test", CHANNELS) == rollout
    assert snapshot(registry.database) == before
    assert len(seen_by) == 4


def test_the_step_tells_an_observer_which_calls_belong_to_it(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    assert rollout.step_route_version == registry.route("mail").version
    raised = tend(registry, rollout.id, look(FINE), later(3), "test")
    assert raised.step == 1
    assert later(3) <= raised.step_entered < later(4)
    assert raised.step_route_version == registry.route("mail").version
    assert raised.entered == rollout.entered, "a step does not begin the state anew"
    assert raised.deadline == rollout.deadline


def test_a_bad_verdict_takes_the_canary_off_and_keeps_the_champion(
    each_registry: Registry,
) -> None:
    registry = each_registry
    champion = bring_to(registry, "promoted", 1)
    rollout = bring_to(registry, "canary", 2, now=later(1))
    ended = tend(registry, rollout.id, look(BAD), later(2), "test", CHANNELS)
    assert ended.state == "rolled_back"
    assert "after 30 canary sessions" in ended.reason
    route = registry.route("mail")
    assert (route.champion, route.candidate, route.weight) == (champion.adapter, None, 0)
    assert registry.adapter(rollout.adapter).state == "rejected"
    last = messages(registry)[-1]
    assert last["title"] == "Adapter rolled back: mail"
    assert last["why"] == ended.reason
    assert f"Now: {champion.adapter} answers all sessions." in last["exposed"]
    chain_is_whole(registry)
    # Terminal for the digest, and the task rests.
    with pytest.raises(RolloutRefused, match="never retried"):
        registry.open_rollout(
            "mail", rollout.adapter, POLICY, actor="n", why="w", now=later(9999), gate_override="x"
        )
    fresh = add_adapter(registry, "mail", 3)
    with pytest.raises(RolloutRefused, match="rests"):
        registry.open_rollout("mail", fresh.name, POLICY, actor="n", why="w", now=later(5))
    clean = registry.open_rollout("mail", fresh.name, POLICY, actor="n", why="w", now=later(13))
    assert clean.open and clean.sessions == 0


@pytest.mark.parametrize("state", ["pending", "shadow", "canary"])
def test_a_deadline_ends_every_open_state_and_keeps_the_champion(
    registry: Registry, state: str
) -> None:
    rollout = bring_to(registry, state)
    after = rollout.deadline + timedelta(seconds=1)
    ended = tend(registry, rollout.id, look(GOOD), after, "test", CHANNELS)
    assert ended.state == "inconclusive"
    assert registry.route("mail").champion == TEACHER
    assert registry.route("mail").candidate is None
    # Not the adapter's fault: it may be tried again, from no evidence.
    assert registry.adapter(rollout.adapter).state == "registered"
    again = registry.open_rollout(
        "mail", rollout.adapter, POLICY, actor="n", why="w", now=after + timedelta(hours=1)
    )
    assert again.id != rollout.id and again.salt != rollout.salt and again.sessions == 0


def test_tending_renews_the_dead_mans_timer_and_failing_to_observe_does_not(
    registry: Registry,
) -> None:
    rollout = bring_to(registry, "canary")
    before = registry.route("mail")
    waiting = replace(FINE, step_sessions=0)
    tended = tend(registry, rollout.id, look(waiting), later(5), "test")
    route = registry.route("mail")
    assert route.updated is not None and route.updated >= later(5)
    assert route.version == before.version, "nothing of what the route says has changed"
    assert tended.evidence["counts"]["canary_sessions"] == 30

    def blind(_rollout: Rollout) -> Observation:
        raise OSError("the log store is away")

    with pytest.raises(OSError, match="away"):
        tend(registry, rollout.id, blind, later(10), "test")
    assert registry.route("mail") == route
    # The failed attempt gave its lease back.
    assert tend(registry, rollout.id, look(GOOD), later(10.5), "test").state == "promoted"


def test_a_queued_rollout_is_not_observed_and_takes_its_turn(registry: Registry) -> None:
    first = bring_to(registry, "canary", 1)
    second = bring_to(registry, "pending", 2, now=later(1))

    def unwanted(_rollout: Rollout) -> Observation:
        raise AssertionError("a rollout that waits must not be observed, let alone loaded")

    assert tend(registry, second.id, unwanted, later(2), "test").state == "pending"
    assert registry.route("mail").rollout_id == first.id
    tend(registry, first.id, look(GOOD), later(3), "test")
    claimed = tend(registry, second.id, unwanted, later(4), "test")
    route = registry.route("mail")
    assert claimed.state == "pending" and claimed.champion == first.adapter
    assert (route.rollout_id, route.candidate, route.weight) == (second.id, second.adapter, 0)
    assert tend(registry, second.id, look(FINE), later(5), "test").state == "shadow"
    chain_is_whole(registry)


def test_after_a_rollback_the_next_in_line_waits_for_the_rest(registry: Registry) -> None:
    first = bring_to(registry, "canary", 1)
    second = bring_to(registry, "pending", 2, now=later(1))
    tend(registry, first.id, look(BAD), later(2), "test")
    assert tend(registry, second.id, look(FINE), later(5), "test").champion is None
    assert registry.route("mail").candidate is None
    assert tend(registry, second.id, look(FINE), later(13), "test").champion == TEACHER


def test_a_rollout_whose_route_was_taken_is_superseded(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    registry.set_route(
        "mail",
        registry.route("mail").version,
        None,
        candidate=None,
        rollout_id=None,
        stage="none",
        weight=0.0,
        **BY,
    )
    assert tend(registry, rollout.id, look(GOOD), later(3), "test").state == "superseded"
    assert registry.route("mail").champion == TEACHER


def test_evidence_of_any_number_type_and_size_is_kept_or_left_out(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    wild = replace(
        BAD,
        evidence={
            "e_bad": float("inf"),
            "nan": numpy.float64("nan"),
            "blocks": numpy.int64(7),
            "when": NOW,
        },
    )
    ended = tend(registry, rollout.id, look(wild), later(3), "test", CHANNELS)
    assert ended.state == "rolled_back"
    assert ended.evidence["observed"] == {
        "e_bad": "inf",
        "nan": "nan",
        "blocks": 7,
        "when": str(NOW),
    }
    huge = bring_to(registry, "canary", 2, now=later(60))
    ended = tend(
        registry, huge.id, look(replace(BAD, evidence={"x": "y" * 100_000})), later(61), "test"
    )
    assert ended.state == "rolled_back"
    assert "left_out" in ended.evidence["observed"]


def test_an_unknown_rollout_is_said_to_be(registry: Registry) -> None:
    with pytest.raises(UnknownRollout):
        tend(registry, "no", look(FINE), NOW, "test")


# Taking back


def test_rolling_back_a_canary_keeps_the_champion(each_registry: Registry) -> None:
    registry = each_registry
    rollout = bring_to(registry, "canary")
    route = rollback(registry, "mail", now=later(1), channels=CHANNELS, **BY)
    assert (route.champion, route.candidate, route.stage) == (TEACHER, None, "none")
    assert registry.rollout(rollout.id).state == "rolled_back"
    assert registry.rollout(rollout.id).reason == "it answers nonsense"
    assert registry.adapter(rollout.adapter).state == "rejected"
    event = registry.events(rollout.id)[0]
    assert (event.actor, event.what) == ("ann", "rollout.rolled_back")
    chain_is_whole(registry)


def test_rolling_back_champions_walks_back_to_the_teacher(each_registry: Registry) -> None:
    registry = each_registry
    first = bring_to(registry, "promoted", 1)
    second = bring_to(registry, "promoted", 2, now=later(1))
    third = bring_to(registry, "promoted", 3, now=later(2))
    assert registry.past_champions("mail") == [second.adapter, first.adapter, TEACHER]
    for expected in (second.adapter, first.adapter, TEACHER):
        before = registry.route("mail")
        route = rollback(registry, "mail", now=later(3), channels=CHANNELS, **BY)
        assert route.champion == expected
        assert registry.adapter(before.champion).state == "rejected"
    assert registry.rollout(third.id).state == "promoted", "a verdict stays what it was"
    assert registry.task("mail").state == "candidate"
    with pytest.raises(NothingToRollBack, match="nothing to roll back"):
        rollback(registry, "mail", now=later(4), **BY)
    said = [body for body in messages(registry) if "rolled back" in body["title"]]
    assert len(said) == 3
    assert said[-1]["exposed"] == "Now: the teacher answers all sessions."
    chain_is_whole(registry)
    # The task rests after a champion's rollback as after a canary's.
    fresh = add_adapter(registry, "mail", 4)
    with pytest.raises(RolloutRefused, match="rests"):
        registry.open_rollout("mail", fresh.name, POLICY, actor="n", why="w", now=later(5))


def test_never_back_to_a_broken_side(registry: Registry) -> None:
    # flagger#1591: the rollback went to the side that had failed.
    first = bring_to(registry, "promoted", 1)
    bring_to(registry, "promoted", 2, now=later(1))
    registry.set_adapter_state(first.adapter, "rejected", **BY)
    assert rollback(registry, "mail", now=later(2), **BY).champion == TEACHER


def test_rolling_back_to_a_named_target(registry: Registry) -> None:
    first = bring_to(registry, "promoted", 1)
    second = bring_to(registry, "promoted", 2, now=later(1))
    stranger = add_adapter(registry, "mail", 9)
    candidate = bring_to(registry, "canary", 3, now=later(2))
    with pytest.raises(RouteInvalid, match="never the champion"):
        rollback(registry, "mail", stranger.name, now=later(3), **BY)
    route = rollback(registry, "mail", first.adapter, now=later(3), **BY)
    assert (route.champion, route.candidate) == (first.adapter, None)
    assert registry.adapter(second.adapter).state == "rejected"
    # Its evidence was against another champion; it did nothing wrong.
    assert registry.rollout(candidate.id).state == "superseded"
    assert registry.adapter(candidate.adapter).state == "registered"
    with pytest.raises(RouteInvalid, match="rejected"):
        rollback(registry, "mail", second.adapter, now=later(4), **BY)
    with pytest.raises(NothingToRollBack, match="already"):
        rollback(registry, "mail", first.adapter, now=later(4), **BY)
    assert rollback(registry, "mail", TEACHER, now=later(5), **BY).champion == TEACHER
    chain_is_whole(registry)


def test_a_merged_task_is_given_no_champion(registry: Registry) -> None:
    first = bring_to(registry, "promoted", 1)
    add_task(registry.database, "post")
    registry.merge_task("post", "mail", **BY)
    with pytest.raises(RouteInvalid, match="merged into post"):
        rollback(registry, "mail", first.adapter, now=later(1), **BY)
    with pytest.raises(NothingToRollBack):
        rollback(registry, "mail", now=later(1), **BY)
    assert registry.route("mail").champion == TEACHER
    registry.separate_task("mail", **BY)
    assert rollback(registry, "mail", first.adapter, now=later(2), **BY).champion == first.adapter


def test_a_merge_into_a_merged_task_stands_while_its_home_tries_an_adapter(
    registry: Registry,
) -> None:
    for name in ("post", "letters"):
        add_task(registry.database, name)
    registry.merge_task("post", "letters", **BY)
    registry.merge_task("mail", "post", **BY)
    rollout = bring_to(registry, "canary")
    for name in ("letters", "post"):
        with pytest.raises(CannotJoin, match=rf"mail has an open rollout.*abort {rollout.id}"):
            registry.separate_task(name, **BY)
    rollback(registry, "mail", now=later(1), **BY)
    assert registry.separate_task("letters", **BY).details == {"kind": "label"}
    with pytest.raises(CannotJoin, match="not merged"):
        registry.separate_task("letters", **BY)


def test_naming_the_champion_takes_only_the_candidate_off(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    assert rollback(registry, "mail", TEACHER, now=later(1), **BY).champion == TEACHER
    assert registry.rollout(rollout.id).state == "rolled_back"


def test_an_unknown_task_is_not_rolled_back(registry: Registry) -> None:
    with pytest.raises(UnknownTask):
        rollback(registry, "nobody", **BY)


def test_the_kill_switch_works_on_candidates_and_champions_and_once(
    each_registry: Registry,
) -> None:
    registry = each_registry
    champion = bring_to(registry, "promoted", 1)
    candidate = bring_to(registry, "canary", 2, now=later(1))

    def kill(name: str) -> bool:
        return request_rollback(
            registry, "mail", name, "5 errors in a row", "gateway", now=later(2)
        )

    assert kill(candidate.adapter) is True
    assert kill(candidate.adapter) is False
    assert registry.rollout(candidate.id).reason == "kill switch: 5 errors in a row"
    assert registry.route("mail").champion == champion.adapter
    assert kill(champion.adapter) is True
    assert kill("mail@never-heard-of") is False
    assert registry.route("mail").champion == TEACHER
    chain_is_whole(registry)


def test_killing_a_champion_supersedes_the_candidate_measured_against_it(
    registry: Registry,
) -> None:
    champion = bring_to(registry, "promoted", 1)
    candidate = bring_to(registry, "canary", 2, now=later(1))
    request_rollback(registry, "mail", champion.adapter, "unsafe output", "gateway", now=later(2))
    assert registry.route("mail").champion == TEACHER
    assert registry.rollout(candidate.id).state == "superseded"


# Two controllers


def at_once(actions: list[Callable[[], Any]]) -> list[Any]:
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def run(position: int) -> None:
        barrier.wait(timeout=30)
        results[position] = actions[position]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("leases_hold", [True, False])
def test_many_controllers_at_once_act_once(
    each_registry: Registry, monkeypatch: pytest.MonkeyPatch, leases_hold: bool
) -> None:
    # argo-rollouts#2117, #1904: promoted twice, controllers in a loop against each other.
    registry = each_registry
    rollout = bring_to(registry, "canary")
    looked = threading.Barrier(4)

    def observe(_rollout: Rollout) -> Observation:
        if not leases_hold:
            looked.wait(timeout=30)  # all have read, none has acted
        return GOOD

    if not leases_hold:
        # Everybody is told that the lease is theirs: what compares versions must hold alone.
        monkeypatch.setattr(controller, "acquire", lambda *_: 99)
        monkeypatch.setattr(controller, "renew", lambda *_: True)
        monkeypatch.setattr(controller, "guard", lambda *_: None)
        monkeypatch.setattr(controller, "release", lambda *_: True)
    at_once(
        [lambda: tend(registry, rollout.id, observe, later(3), "test", CHANNELS) for _ in range(4)]
    )
    assert registry.rollout(rollout.id).state == "promoted"
    whats = [event.what for event in registry.history("mail")]
    assert whats.count("rollout.promoted") == 1
    assert whats.count("route.promoted") == 1
    assert sum("promoted" in body["title"] for body in messages(registry)) == 1
    chain_is_whole(registry)


def test_a_late_controller_with_an_old_fence_writes_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = bring_to(registry, "canary")
    route = registry.route("mail")
    with registry.database.begin() as connection:
        touch_route(connection, route, fence=route.fence + 5, now=later(1))
    monkeypatch.setattr(controller, "guard", lambda *_: None)
    assert tend(registry, rollout.id, look(GOOD), later(2), "late").state == "canary"
    assert tend(registry, rollout.id, look(replace(FINE, labels=0)), later(3), "late") == rollout
    assert registry.route("mail").champion == TEACHER


def test_a_held_lease_leaves_the_rollout_alone(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    assert acquire(registry.database, "rollout:mail", "other", 60, later(1)) is not None

    def unwanted(_rollout: Rollout) -> Observation:
        raise AssertionError("somebody else is looking")

    assert tend(registry, rollout.id, unwanted, later(1), "test") == rollout
    # The other died; its lease runs out by itself.
    assert tend(registry, rollout.id, look(GOOD), later(3), "test").state == "promoted"


@pytest.mark.parametrize("renewed", [False, True])
def test_a_lease_lost_while_looking_is_not_acted_under(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    rollout = bring_to(registry, "canary")
    if renewed:  # it was lost between the renewal and the transaction
        monkeypatch.setattr(controller, "renew", lambda *_: True)

    def slow(_rollout: Rollout) -> Observation:
        assert acquire(registry.database, "rollout:mail", "other", 60, later(10)) is not None
        return GOOD

    assert tend(registry, rollout.id, slow, later(1), "slow") == rollout
    assert registry.route("mail").champion == TEACHER


def test_a_decision_on_what_has_changed_meanwhile_is_dropped(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")

    def slow(_rollout: Rollout) -> Observation:
        # Meanwhile the lease runs out, another takes it, and sees a bad canary.
        ended = tend(registry, rollout.id, look(BAD), later(10), "other", CHANNELS)
        assert ended.state == "rolled_back"
        return GOOD

    result = tend(registry, rollout.id, slow, later(1), "slow", CHANNELS)
    assert result.state == "rolled_back"
    assert registry.route("mail").champion == TEACHER
    assert not any("promoted" in body["title"] for body in messages(registry))


def test_a_person_outranks_a_controller_in_the_middle_of_its_work(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")

    def slow(_rollout: Rollout) -> Observation:
        rollback(registry, "mail", now=later(1), **BY)
        return GOOD

    assert tend(registry, rollout.id, slow, later(1), "slow").state == "rolled_back"
    assert registry.route("mail").champion == TEACHER


def test_looking_longer_than_the_lease_still_gets_somewhere(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    pause = threading.Event()

    def slow(_rollout: Rollout) -> Observation:
        pause.wait(0.05)
        return GOOD

    ended = tend(registry, rollout.id, slow, later(1), "slow", lease_seconds=0.01)
    # The lease ran out and nobody took it; the second one may be too short for a slow machine, and
    # then nothing happens rather than half of it.
    assert ended.state in ("promoted", "canary")
    ended = tend(registry, rollout.id, slow, later(2), "slow", lease_seconds=30)
    assert ended.state == "promoted"


def test_kill_and_promotion_at_once_leave_the_adapter_off(each_registry: Registry) -> None:
    registry = each_registry
    rollout = bring_to(registry, "canary")
    at_once(
        [
            lambda: tend(registry, rollout.id, look(GOOD), later(1), "test", CHANNELS),
            lambda: request_rollback(
                registry, "mail", rollout.adapter, "burst", "gateway", now=later(1)
            ),
            lambda: request_rollback(
                registry, "mail", rollout.adapter, "burst", "other gateway", now=later(1)
            ),
        ]
    )
    route = registry.route("mail")
    assert (route.champion, route.candidate) == (TEACHER, None)
    assert registry.adapter(rollout.adapter).state == "rejected"
    assert registry.rollout(rollout.id).state in ("rolled_back", "promoted")
    chain_is_whole(registry)


# Killed in the middle


Action = Callable[[Registry, Rollout, float], Any]


def _tending(seen: Observation) -> Action:
    def action(registry: Registry, rollout: Rollout, minute: float) -> Any:
        def observe(current: Rollout) -> Observation:
            # The step was taken: from then on there is nothing new to see.
            moved = (current.state, current.step) != (rollout.state, rollout.step)
            return replace(seen, step_sessions=0, shadow_pairs=0) if moved else seen

        return tend(registry, rollout.id, observe, later(minute), "test", CHANNELS)

    return action


def _taking_back(registry: Registry, rollout: Rollout, minute: float) -> Any:
    return request_rollback(
        registry,
        "mail",
        rollout.adapter,
        "burst",
        "gateway",
        now=later(minute),
        channels=CHANNELS,
    )


def _opening(registry: Registry, rollout: Rollout, minute: float) -> Any:
    adapter = add_adapter(registry, "mail", 2)
    policy = replace(POLICY, when_open="supersede")
    return registry.open_rollout(
        "mail", adapter.name, policy, actor="night", why="better", now=later(minute)
    )


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("pending", _tending(FINE)),
        ("shadow", _tending(FINE)),
        ("canary", _tending(FINE)),
        ("canary", _tending(GOOD)),
        ("canary", _tending(BAD)),
        ("canary", _taking_back),
        ("promoted", _taking_back),
        ("canary", _opening),
    ],
    ids=["shadow", "canary", "raise", "promote", "bad", "kill", "kill-champion", "supersede"],
)
def test_killed_before_any_statement_and_run_again_ends_in_the_same_state(
    database: Database, tmp_path: Path, state: str, action: Action
) -> None:
    add_task(database, "mail")
    rollout = bring_to(Registry(database), state)
    start = snapshot(database)

    def played(name: str, killed_after: int | None) -> tuple[dict[str, Any], bool]:
        copied = copy_of(database, tmp_path / "copies", name)
        registry = Registry(copied)
        died = False
        if killed_after is not None:
            with killed_at(copied, killed_after):
                try:
                    action(registry, rollout, 2)
                except Killed:
                    died = True
            assert_whole(snapshot(copied), start, wanted)
        # The dead one's lease has run out.
        action(registry, rollout, 4)
        result = snapshot(copied)
        copied.close()
        return result, died

    wanted: dict[str, Any] = {}
    wanted.update(played("whole", None)[0])
    deaths = 0
    for statement in range(200):
        found, died = played(f"killed-{statement}", statement)
        assert found == wanted, f"killed before statement {statement}"
        if not died:
            break
        deaths += 1
    else:
        raise AssertionError("no run came through")
    assert deaths > 8, "the run was killed at each of its statements"


def assert_whole(now: dict[str, Any], start: dict[str, Any], end: dict[str, Any]) -> None:
    """All of the change or none of it, whatever the moment of the kill."""
    for part in ("routes", "rollouts", "outbox", "tasks"):
        assert now[part] in (start[part], end[part]), part
    moved = {part for part in ("routes", "rollouts", "outbox") if now[part] != start[part]}
    should = {part for part in ("routes", "rollouts", "outbox") if end[part] != start[part]}
    assert moved in (set(), should)
