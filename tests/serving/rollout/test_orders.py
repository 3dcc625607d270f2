"""What a person may order, in the pure machine and in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.database.open import Database
from infra.database.tables import outbox
from serving.registry.errors import (
    IllegalState,
    NothingToRollBack,
    RolloutRefused,
    RouteChanged,
    RouteInvalid,
)
from serving.registry.records import TEACHER, Rollout
from serving.registry.registry import Registry
from serving.rollout import controller
from serving.rollout.controller import request_rollback, rollback, tend
from serving.rollout.machine import ENDED, Observation, Order, Transition, next_step, order
from serving.rollout.orders import give_order
from serving.rollout.states import state_from_json, state_to_json
from serving.rollout.targets import resolve
from tests.serving.registry.world import add_adapter, add_task
from tests.serving.rollout.stage import (
    BAD,
    CHANNELS,
    FINE,
    GOOD,
    POLICY,
    Killed,
    bring_to,
    killed_at,
    later,
    look,
)
from tests.serving.rollout.test_machine import CANARY, NOW, PENDING, SHADOW, observations, states

APPROVED = replace(POLICY, approval=True, approval_seconds=3600)
orders = st.sampled_from(["pause", "resume", "abort", "approve"])


@pytest.fixture
def registry(database: Database) -> Iterator[Registry]:
    add_task(database, "mail")
    yield Registry(database)


def give(registry: Registry, rollout: Rollout, what: Order, minute: float = 1) -> Rollout:
    return give_order(
        registry,
        rollout.id,
        what,
        actor="ann",
        why="by hand",
        now=later(minute),
        channels=CHANNELS,
    )


def see(registry: Registry, rollout: Rollout, seen: Observation, minute: float) -> Rollout:
    return tend(registry, rollout.id, look(seen), later(minute), "one", CHANNELS)


# The pure machine


@given(states, orders)
def test_no_order_exposes_more_than_the_step_did_or_moves_what_has_ended(state, what) -> None:
    found = order(state, what, "why", NOW)
    if state.state in ENDED:
        assert isinstance(found, str)
        return
    if isinstance(found, Transition):
        most = state.policy.steps[state.step] if state.state == "canary" else 0
        assert found.weight <= most
        assert found.state == ("inconclusive" if what == "abort" else state.state)
        assert what not in ("pause", "abort") or found.weight == 0


@given(states, observations)
def test_a_paused_rollout_exposes_nobody_and_still_ends(state, seen) -> None:
    paused = replace(state, paused=True)
    transition = next_step(paused, seen, NOW)
    assert transition is None or transition.state in ENDED - {"promoted"}
    if state.state not in ENDED:
        late = next_step(paused, seen, state.deadline)
        assert late is not None and late.state in ENDED


@given(states, observations)
def test_without_an_approval_nothing_is_promoted_where_one_is_asked_for(state, seen) -> None:
    for given_so_far in ("none", "asked"):
        asked = replace(state, policy=APPROVED, approval=given_so_far, step=0)
        transition = next_step(asked, seen, NOW)
        assert transition is None or transition.state != "promoted"


@pytest.mark.parametrize("approval", ["asked", "given"])
def test_the_weight_stays_while_a_person_is_waited_for(approval) -> None:
    waiting = replace(CANARY, policy=APPROVED, approval=approval)
    assert next_step(replace(waiting, approval="none"), FINE, NOW) is not None
    # A metric that fell silent takes the good verdict back; the question stands until its deadline.
    for seen in (FINE, replace(FINE, canary_sessions=POLICY.max_sessions)):
        assert next_step(waiting, seen, NOW) is None


@given(states)
def test_a_state_survives_json(state) -> None:
    assert state_from_json(state_to_json(state), state.policy) == state


def test_a_rollback_comes_before_the_wait_for_a_person() -> None:
    waiting = replace(CANARY, policy=APPROVED, approval="asked")
    found = next_step(waiting, replace(FINE, verdict="bad"), NOW)
    assert found is not None and found.state == "rolled_back"
    found = next_step(replace(CANARY, paused=True), replace(FINE, kill="burst"), NOW)
    assert found is not None and found.state == "rolled_back"


def test_what_is_paused_is_not_approved_before_somebody_resumes_it() -> None:
    waiting = replace(CANARY, policy=APPROVED, approval="asked")
    assert isinstance(order(waiting, "approve", "", NOW), Transition)
    assert "resume it first" in str(order(replace(waiting, paused=True), "approve", "", NOW))


def test_what_waits_for_its_turn_can_only_be_aborted() -> None:
    queued = replace(PENDING, route="taken")
    for what in ("pause", "resume", "approve"):
        assert "can only be aborted" in str(order(queued, what, "", NOW))  # type: ignore[arg-type]
    aborted = order(queued, "abort", "no", NOW)
    assert isinstance(aborted, Transition) and aborted.state == "inconclusive"


def test_a_pause_in_the_shadow_and_its_end() -> None:
    paused = order(SHADOW, "pause", "noise", NOW)
    assert isinstance(paused, Transition)
    assert (paused.state, paused.stage, paused.reason) == ("shadow", "none", "paused: noise")
    back = order(replace(SHADOW, paused=True, paused_left_seconds=60), "resume", "x", NOW)
    assert isinstance(back, Transition)
    assert (back.stage, back.weight, back.deadline_seconds) == ("shadow", 0, 60)


# In the registry


def test_a_pause_takes_the_weight_and_keeps_step_evidence_and_time(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    left = rollout.deadline - later(1)
    paused = give(registry, rollout, "pause")
    route = registry.route("mail")
    assert (route.candidate, route.stage, route.weight) == (rollout.adapter, "none", 0)
    assert paused.paused and paused.deadline == later(1) + timedelta(seconds=POLICY.pause_seconds)
    for minute, seen in ((2, FINE), (3, GOOD)):
        assert see(registry, rollout, seen, minute).state == "canary"
        assert registry.route("mail").weight == 0, "nothing but a person ends a pause"
    back = give(registry, rollout, "resume", 10)
    assert not back.paused and back.deadline == later(10) + left
    assert back.step_route_version == rollout.step_route_version, "the step's sessions still count"
    route = registry.route("mail")
    assert (route.stage, route.weight, route.salt) == ("canary", POLICY.steps[0], rollout.salt)
    assert see(registry, rollout, GOOD, 11).state == "promoted"


def test_a_pause_nobody_ends_is_inconclusive(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    give(registry, rollout, "pause")
    after = see(registry, rollout, GOOD, 2 + POLICY.pause_seconds / 60)
    assert (after.state, after.paused) == ("inconclusive", False)
    assert "paused for 86400 seconds and not resumed" in after.reason
    assert registry.route("mail").candidate is None


def test_a_successor_ends_a_paused_rollout_and_its_pause(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    give(registry, rollout, "pause")
    supersede = replace(POLICY, when_open="supersede")
    new = registry.open_rollout(
        "mail", add_adapter(registry, "mail", 2).name, supersede, actor="n", why="w", now=later(2)
    )
    ended = registry.rollout(rollout.id)
    assert (ended.state, ended.paused) == ("superseded", False)
    assert registry.route("mail").rollout_id == new.id and not new.paused


def test_a_bad_verdict_ends_a_paused_rollout(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    give(registry, rollout, "pause")
    assert see(registry, rollout, BAD, 2).state == "rolled_back"
    assert registry.adapter(rollout.adapter).state == "rejected"


def test_an_abort_keeps_the_champion_and_rejects_nobody(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    after = give(registry, rollout, "abort")
    assert (after.state, after.reason) == ("inconclusive", "aborted: by hand")
    assert registry.route("mail").candidate is None
    assert registry.adapter(rollout.adapter).state == "registered"
    with pytest.raises(IllegalState, match="it has ended: inconclusive"):
        give(registry, rollout, "resume")


def test_a_promotion_waits_for_a_person_at_its_weight(registry: Registry) -> None:
    rollout = bring_to(registry, "canary", policy=APPROVED)
    asked = see(registry, rollout, GOOD, 1)
    before = registry.route("mail")
    assert (asked.state, asked.approval) == ("canary", "asked")
    assert 0 <= (asked.deadline - later(61)).total_seconds() < 60
    assert see(registry, rollout, GOOD, 2).state == "canary"
    assert registry.route("mail").version == before.version, "nothing moves meanwhile"
    assert give(registry, rollout, "approve", 3).approval == "given"
    with pytest.raises(IllegalState, match="approved already"):
        give(registry, rollout, "approve", 3)
    assert see(registry, rollout, GOOD, 4).state == "promoted"
    assert registry.route("mail").champion == rollout.adapter


def test_nobody_approving_keeps_the_champion(registry: Registry) -> None:
    rollout = bring_to(registry, "canary", policy=APPROVED)
    see(registry, rollout, GOOD, 1)
    after = see(registry, rollout, GOOD, 62)
    assert after.state == "inconclusive" and "nobody approved in 3600 seconds" in after.reason
    assert registry.route("mail").champion == TEACHER


def test_an_approval_of_what_has_turned_bad_promotes_nothing(registry: Registry) -> None:
    rollout = bring_to(registry, "canary", policy=APPROVED)
    see(registry, rollout, GOOD, 1)
    give(registry, rollout, "approve", 2)
    assert see(registry, rollout, BAD, 3).state == "rolled_back"


def test_an_order_given_while_a_controller_looks_wins(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")

    def observe(_: Rollout) -> Observation:
        give(registry, rollout, "pause")
        return GOOD

    after = tend(registry, rollout.id, observe, later(1), "one", CHANNELS)
    assert after.state == "canary" and after.paused
    assert registry.route("mail").champion == TEACHER


@pytest.mark.parametrize("what", ["pause", "abort"])
def test_an_order_killed_at_any_statement_happened_or_did_not(
    registry: Registry, what: Order
) -> None:
    rollout = bring_to(registry, "canary")
    for statement in range(60):
        before = registry.rollout(rollout.id), registry.route("mail")
        died = False
        with killed_at(registry.database, statement):
            try:
                give(registry, rollout, what)
            except Killed:
                died = True
        if not died:
            break
        assert (registry.rollout(rollout.id), registry.route("mail")) == before
    assert statement > 5
    assert registry.route("mail").weight == 0


def test_people_are_told_what_happened_what_is_exposed_and_how_to_undo_it(
    registry: Registry,
) -> None:
    rollout = bring_to(registry, "canary", policy=APPROVED)
    give(registry, rollout, "pause", 1)
    give(registry, rollout, "resume", 2)
    give(registry, rollout, "pause", 3)
    give(registry, rollout, "resume", 4)
    see(registry, rollout, GOOD, 5)
    give(registry, rollout, "approve", 6)
    give(registry, rollout, "abort", 7)
    with registry.database.read() as connection:
        told = [dict(row.body) for row in connection.execute(outbox.select().order_by("id"))]
    titles = [body["title"] for body in told]
    assert titles[2:] == [
        f"{title}: mail"
        for title in (
            "Rollout paused",
            "Rollout resumed",
            "Rollout paused",
            "Rollout resumed",
            "Promotion waits for approval",
            "Promotion approved",
            "Rollout aborted",
        )
    ]
    paused, resumed, asked = told[2], told[3], told[6]
    assert "Now: the teacher answers all sessions." in paused["exposed"]
    # What undoes it is a command to be copied, and no answer to the question.
    assert paused["undo"] == f"nightschool rollouts resume {rollout.id}"
    assert "unless somebody resumes it by 20" in paused["what"]
    assert f"{rollout.adapter} answers 10% of the sessions" in resumed["exposed"]
    assert "30 canary sessions (30 with a label)" in asked["why"]
    assert f"nightschool rollouts approve {rollout.id}" in asked["what"]
    assert "UTC, else the champion stays" in asked["what"]
    assert asked["undo"] == f"nightschool rollouts abort {rollout.id}"
    assert "nothing to undo" in told[8]["undo"]


# A message of the kill switch that comes late


def test_a_kill_after_the_end_still_rejects_the_adapter(registry: Registry) -> None:
    rollout = bring_to(registry, "canary")
    give(registry, rollout, "abort")
    assert not request_rollback(registry, "mail", rollout.adapter, "unsafe output", "gateway")
    assert registry.adapter(rollout.adapter).state == "rejected"
    assert not request_rollback(registry, "mail", rollout.adapter, "unsafe output", "gateway")
    with pytest.raises(RolloutRefused, match="never retried"):
        registry.open_rollout("mail", rollout.adapter, POLICY, actor="n", why="w", now=later(1e4))


def test_a_kill_ends_one_that_was_opened_again_and_waits_for_its_turn(registry: Registry) -> None:
    first = bring_to(registry, "canary")
    give(registry, first, "abort")
    other = bring_to(registry, "canary", 2, now=later(60))
    again = registry.open_rollout(
        "mail", first.adapter, POLICY, actor="night", why="again", now=later(61)
    )
    request_rollback(registry, "mail", first.adapter, "burst", "gateway", now=later(62))
    assert registry.rollout(again.id).state == "rolled_back"
    assert registry.adapter(first.adapter).state == "rejected"
    assert registry.route("mail").candidate == other.adapter, "who answers is not touched"


def test_a_kill_of_one_that_comes_back_at_that_moment_is_said_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = bring_to(registry, "canary")

    def away(*_: object) -> None:
        raise NothingToRollBack("it was off, and stands on the route again since")

    with monkeypatch.context() as patched:
        patched.setattr(controller, "_take_back", away)
        with pytest.raises(RouteChanged, match="say it again"):
            request_rollback(registry, "mail", rollout.adapter, "burst", "gateway")
    assert registry.rollout(rollout.id) == rollout
    assert request_rollback(registry, "mail", rollout.adapter, "burst", "gateway")


# Whom a rollback means


def test_a_rollback_takes_the_start_of_a_digest(registry: Registry) -> None:
    first = bring_to(registry, "promoted", 1).adapter
    bring_to(registry, "promoted", 2, now=later(30))
    digest = registry.adapter(first).digest
    route = rollback(registry, "mail", digest[:6], actor="ann", why="w", now=later(60))
    assert route.champion == first


def test_the_start_of_a_digest_must_say_one() -> None:
    known = ["mail@aaaa111111111111", "mail@aaaa222222222222", "mail@bbbb333333333333"]
    assert resolve("bbbb", known) == "mail@bbbb333333333333"
    assert resolve("mail@AAAA1", known) == "mail@aaaa111111111111"
    assert resolve("bbbb333333333333" + "0" * 48, known) == "mail@bbbb333333333333"
    assert resolve("teacher", known) == "teacher"
    assert resolve("bbb", known) == "bbb", "too short to mean anybody"
    with pytest.raises(RouteInvalid, match="more than one digest"):
        resolve("aaaa", known)
