"""Tending a rollout against a real database: what changes, together, once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy
import pytest

from serving.registry.errors import (
    RolloutRefused,
    UnknownRollout,
)
from serving.registry.records import TEACHER, Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import tend
from serving.rollout.machine import Observation
from serving.rollout.states import read_state
from tests.serving.registry.world import NOW, add_adapter
from tests.serving.rollout.stage import (
    BAD,
    BY,
    CHANNELS,
    FINE,
    GOOD,
    POLICY,
    bring_to,
    chain_is_whole,
    later,
    look,
    messages,
    snapshot,
)


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
    assert (claimed.step_entered, claimed.step_route_version) == (route.updated, route.version)
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


def test_a_route_with_another_champion_is_not_the_one_it_was_measured_on(
    registry: Registry,
) -> None:
    # No write leaves such a row; one from outside must not promote on it either.
    rollout, route, task = (
        bring_to(registry, "canary"),
        registry.route("mail"),
        registry.task("mail"),
    )
    for champion, held in ((TEACHER, "own"), ("mail@another", "taken")):
        with registry.database.begin() as connection:
            found = read_state(connection, rollout, replace(route, champion=champion), task, NOW)
        assert found.route == held


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
