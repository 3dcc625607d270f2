"""Several controllers, people and gateways at one rollout: each change comes once."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from infra.database.leases import acquire
from serving.registry.records import TEACHER, Rollout
from serving.registry.registry import Registry
from serving.registry.routes import touch_route
from serving.rollout import controller
from serving.rollout.controller import request_rollback, rollback, tend
from serving.rollout.machine import Observation
from tests.contracts.registry_steps import at_once
from tests.serving.rollout.stage import (
    BAD,
    BY,
    CHANNELS,
    FINE,
    GOOD,
    bring_to,
    chain_is_whole,
    later,
    look,
    messages,
)


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

    def act() -> Rollout:
        return tend(registry, rollout.id, observe, later(3), "test", CHANNELS)

    results = at_once(*[act] * 4)
    assert not [found for found in results if isinstance(found, Exception)], results
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


def test_looking_longer_than_the_lease_still_gets_somewhere(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout, seconds = bring_to(registry, "canary"), [0.0]
    monkeypatch.setattr(
        controller, "_clock", lambda start: lambda: start + timedelta(seconds=seconds[0])
    )

    def slow(_rollout: Rollout) -> Observation:
        seconds[0] += 31
        return GOOD

    # The lease ran out and nobody took it.
    ended = tend(registry, rollout.id, slow, later(1), "slow", lease_seconds=30)
    assert ended.state == "promoted"


def test_kill_and_promotion_at_once_leave_the_adapter_off(each_registry: Registry) -> None:
    registry = each_registry
    rollout = bring_to(registry, "canary")
    at_once(
        lambda: tend(registry, rollout.id, look(GOOD), later(1), "test", CHANNELS),
        lambda: request_rollback(
            registry, "mail", rollout.adapter, "burst", "gateway", now=later(1)
        ),
        lambda: request_rollback(
            registry, "mail", rollout.adapter, "burst", "other gateway", now=later(1)
        ),
    )
    route = registry.route("mail")
    assert (route.champion, route.candidate) == (TEACHER, None)
    assert registry.adapter(rollout.adapter).state == "rejected"
    assert registry.rollout(rollout.id).state in ("rolled_back", "promoted")
    chain_is_whole(registry)
