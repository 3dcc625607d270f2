"""A verdict is explained by what was kept: replayed to the same step, drawn, and told if changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from flows import upkeep
from flows.housekeeping import housekeep
from flows.kept_evidence import PREFIX, EvidenceDamaged, read_kept
from flows.replaying import replay
from flows.rollout_picture import draw, keep_picture
from infra.calls.codec import LOG_PREFIX
from infra.database.open import Database
from infra.settings.model import Settings
from serving.rollout.controller import request_rollback
from serving.rollout.orders import give_order
from tests.flows.rollout_world import POLICY, World, world_of


@pytest.fixture
def world(settings: Settings, database: Database) -> Iterator[World]:
    with world_of(settings, database) as made:
        yield made


def to_the_end(world: World, right: bool, batches: int = 30) -> str:
    world.open()
    for _ in range(batches):
        world.look(1)
        if not world.rollout().open:
            break
        world.play(20, right=right)
        world.now += timedelta(seconds=45)  # the labels of most of these are still to come
    return world.rollout().state


def forget_logs(world: World) -> None:
    for item in list(world.context.store.list(LOG_PREFIX)):
        world.context.store.delete(item.key)


@pytest.mark.parametrize(("right", "state"), [(True, "promoted"), (False, "rolled_back")])
def test_every_step_comes_out_the_same_without_the_logs(
    world: World, right: bool, state: str
) -> None:
    assert to_the_end(world, right) == state
    forget_logs(world)
    steps = replay(world.context, world.rollout().id)
    assert all(step.same for step in steps), [step.differences for step in steps]
    taken = [step for step in steps if step.source != "order"]
    assert {step.source for step in taken} == {"kept"}
    assert taken[-1].what == f"rollout.{state}"
    assert taken[-1].why == world.rollout().reason


def test_what_is_kept_holds_no_prompt(world: World) -> None:
    to_the_end(world, right=True)
    kept = [item.key for item in world.context.store.list(PREFIX)]
    assert kept
    for key in kept:
        calls, _ = read_kept(world.context.store, key)
        assert not any("messages" in call.request for call in calls)


def test_without_what_was_kept_the_logs_answer(world: World) -> None:
    to_the_end(world, right=False)
    for item in list(world.context.store.list(PREFIX)):
        world.context.store.delete(item.key)
    steps = replay(world.context, world.rollout().id)
    assert all(step.same for step in steps), [step.differences for step in steps]
    assert "log" in {step.source for step in steps}


def test_a_verdict_that_its_records_do_not_give_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import observing

    to_the_end(world, right=False)
    rollout = world.rollout()
    # A later release that is blind to the wrong answers.
    real = observing.judge_canary

    def kinder(*args: object, **more: object):
        return replace(real(*args, **more), verdict="continue")

    monkeypatch.setattr(observing, "judge_canary", kinder)
    last = replay(world.context, rollout.id)[-1]
    assert not last.same
    assert any(difference.startswith("verdicts:") for difference in last.differences)
    assert any(difference.startswith("step:") for difference in last.differences)


def test_changed_evidence_is_refused(world: World) -> None:
    to_the_end(world, right=False)
    for item in list(world.context.store.list(PREFIX)):
        world.context.store.put(item.key, b"something else")
    with pytest.raises(EvidenceDamaged, match="holds other bytes than its name says"):
        replay(world.context, world.rollout().id)


def test_orders_and_kills_are_listed_and_rest_on_nothing(world: World) -> None:
    rollout = world.open()
    world.look(1)
    world.look(1)
    for what in ("pause", "resume"):
        give_order(world.registry, rollout.id, what, actor="ann", why="odd", now=world.now)  # type: ignore[arg-type]
    request_rollback(world.registry, "mail", rollout.adapter, "burst", "gateway", now=world.now)
    steps = replay(world.context, rollout.id)
    assert [(step.what, step.actor) for step in steps if step.source == "order"] == [
        ("rollout.opened", "night"),
        ("rollout.paused", "ann"),
        ("rollout.resumed", "ann"),
        ("rollout.rolled_back", "gateway"),
    ]
    assert all(step.same for step in steps)


def test_a_step_is_taken_although_its_evidence_cannot_be_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.objects.store import ObjectStoreError

    store = world.context.store

    def full(*_: object) -> None:
        raise ObjectStoreError("the disk is full")

    monkeypatch.setattr(store, "create", full)
    assert to_the_end(world, right=False) == "rolled_back"
    assert all(step.same for step in replay(world.context, world.rollout().id))


def test_the_picture_shows_evidence_thresholds_steps_and_who_acted(world: World) -> None:
    to_the_end(world, right=True)
    rollout = world.rollout()
    drawn = draw(world.context, rollout.id).page
    assert drawn.count("<polyline") == 5  # a frame, two lines, their threshold, the canary's share
    for told in (
        rollout.adapter,
        "promoted",
        "rollout-controller",
        "night",
        "30%",
        "50%",
        "100%",
        ">20<",
    ):
        assert told in drawn, told
    page, image = keep_picture(world.context, rollout.id)
    assert world.context.store.get(page).decode() == draw(world.context, rollout.id).page
    assert image is not None
    assert world.context.store.get(image).startswith(b"\x89PNG")


def test_a_rollout_nobody_has_met_is_drawn_too(world: World) -> None:
    rollout = world.open(policy=replace(POLICY, steps=(0.2,)))
    assert "no session has been exposed" in draw(world.context, rollout.id, world.now).page


def test_the_champions_latency_is_measured_in_the_shadow_frozen_and_replayed(world: World) -> None:
    world.open(policy=replace(POLICY, shadow_sessions=25, latency_floor_seconds=0.5))
    world.look(1)
    assert world.rollout().state == "shadow"
    world.play(30, shadow=True, latency_seconds=1.0)
    world.look(61)
    rollout = world.rollout()
    assert rollout.state == "canary" and rollout.latency_objective_seconds == 2.0
    # What the champion does later does not move it, and a slow canary is found by it.
    for _ in range(12):
        if world.rollout().open:
            world.play(40, latency_seconds=0.1, canary_seconds=9.0)
            world.look(61)
    rollout = world.rollout()
    assert rollout.state == "rolled_back" and "latency worse" in rollout.reason
    assert rollout.latency_objective_seconds == 2.0
    steps = replay(world.context, rollout.id)
    assert all(step.same for step in steps), [step.differences for step in steps]


def test_kept_evidence_goes_when_its_time_is_over(world: World) -> None:
    to_the_end(world, right=False)
    rollout, store = world.rollout(), world.context.store
    kept = [item.key for item in store.list(PREFIX)]
    retention = world.context.settings.retention.model_copy(update={"evidence_seconds": 86400})
    settings = world.context.settings.model_copy(update={"retention": retention})
    aged = replace(world.context, settings=settings)
    soon, late = rollout.entered + timedelta(hours=23), rollout.entered + timedelta(hours=25)
    for context, now, dry in (
        (aged, soon, False),
        (aged, late, True),
        (world.context, late, False),
    ):
        housekeep(context, now=now, dry_run=dry)
        assert [item.key for item in store.list(PREFIX)] == kept
    done = housekeep(aged, now=late).done
    assert [entry.what for entry in done if entry.kind == "evidence"] == [rollout.id]
    assert list(store.list(PREFIX)) == []


def test_what_cannot_be_shown_is_only_said(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise ValueError("no colours")

    monkeypatch.setattr(upkeep, "keep_picture", broken)
    monkeypatch.setattr(upkeep, "create_table_artifact", broken)
    upkeep._show(world.context, world.open())
    upkeep._show_cleared([], {})
    assert caplog.text.count("no colours") == 2
