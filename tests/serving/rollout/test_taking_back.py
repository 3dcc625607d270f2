"""Rolling back, by hand and by the kill switch, against a real database."""

from __future__ import annotations

from typing import Any

import pytest

from serving.registry.errors import (
    CannotJoin,
    NothingToRollBack,
    RolloutRefused,
    RouteChanged,
    RouteInvalid,
    UnknownTask,
)
from serving.registry.records import TEACHER, Route
from serving.registry.registry import Registry
from serving.rollout import controller
from serving.rollout.controller import request_rollback, rollback
from tests.serving.registry.world import add_adapter, add_task
from tests.serving.rollout.stage import (
    BY,
    CHANNELS,
    POLICY,
    bring_to,
    chain_is_whole,
    later,
    messages,
)


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
    for minute, expected in ((3, second.adapter), (8, first.adapter), (13, TEACHER)):
        before = registry.route("mail")
        route = rollback(registry, "mail", now=later(minute), channels=CHANNELS, **BY)
        assert route.champion == expected
        assert registry.adapter(before.champion).state == "rejected"
    assert registry.rollout(third.id).state == "promoted", "a verdict stays what it was"
    assert registry.task("mail").state == "candidate"
    with pytest.raises(NothingToRollBack, match="nothing to roll back"):
        rollback(registry, "mail", now=later(14), **BY)
    said = [body for body in messages(registry) if "rolled back" in body["title"]]
    assert len(said) == 3
    assert said[-1]["exposed"] == "Now: the teacher answers all sessions."
    chain_is_whole(registry)
    # The task rests after a champion's rollback as after a canary's, and from the last one on.
    fresh = add_adapter(registry, "mail", 4)
    with pytest.raises(RolloutRefused, match="rests"):
        registry.open_rollout("mail", fresh.name, POLICY, actor="n", why="w", now=later(15))


def test_a_rollback_that_meets_another_writer_is_tried_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_to(registry, "canary")
    real, refusals = controller._take_back_once, [RouteChanged("somebody else was faster")]

    def once(*given: Any) -> Route:
        if refusals:
            raise refusals.pop()
        return real(*given)

    monkeypatch.setattr(controller, "_take_back_once", once)
    assert rollback(registry, "mail", now=later(1), **BY).candidate is None


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
    bring_to(registry, "promoted", 1)
    champion = bring_to(registry, "promoted", 2, now=later(1))
    candidate = bring_to(registry, "canary", 3, now=later(2))
    request_rollback(registry, "mail", champion.adapter, "unsafe output", "gateway", now=later(3))
    assert registry.route("mail").champion == TEACHER, "the one before is loaded nowhere"
    assert registry.rollout(candidate.id).state == "superseded"
