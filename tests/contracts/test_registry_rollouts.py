"""What the registry promises of rollouts, on every database: SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serving.registry.errors import (
    IllegalState,
    RolloutChanged,
    RolloutRefused,
    RouteInvalid,
)
from serving.registry.openings import write_rollout
from serving.registry.records import TEACHER, Adapter, Rollout
from serving.registry.registry import Registry
from tests.contracts.registry_steps import BY, POLICY, at_once, whats
from tests.serving.registry.world import MINUTE, NOW, add_adapter, add_task, digest


def test_an_opened_rollout_exposes_nobody(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    rollout = registry.open_rollout("mail", adapter.name, POLICY, now=NOW, **BY)
    assert (rollout.state, rollout.step, rollout.policy) == ("pending", 0, POLICY)
    assert rollout.deadline > NOW
    assert rollout.champion == TEACHER
    route = registry.route("mail")
    assert (route.champion, route.candidate, route.rollout_id) == (
        TEACHER,
        adapter.name,
        rollout.id,
    )
    assert (route.stage, route.weight, route.salt) == ("none", 0, rollout.salt)
    assert registry.rollouts("open") == registry.rollouts("pending") == [rollout]
    assert registry.rollouts(("shadow", "canary")) == []
    # Opening it again, as a night that runs again does, changes nothing.
    assert registry.open_rollout("mail", adapter.name, POLICY, now=NOW + MINUTE, **BY) == rollout
    assert whats(registry, rollout.id) == ["rollout.opened"]


def test_the_champion_stays_while_a_candidate_is_measured_against_it(registry: Registry) -> None:
    one, two = (add_adapter(registry, "mail", number) for number in (1, 2))
    registry.open_rollout("mail", one.name, POLICY, now=NOW, **BY)
    route = registry.route("mail")
    with pytest.raises(RouteInvalid, match="end the rollout first"):
        registry.set_route("mail", route.version, None, champion=two.name, **BY)
    assert registry.route("mail") == route


@pytest.mark.parametrize("verdict", [None, "fail", "inconclusive"])
def test_only_a_passed_gate_opens_a_rollout(registry: Registry, verdict: str | None) -> None:
    adapter = add_adapter(registry, "mail", 1, verdict)
    with pytest.raises(RolloutRefused, match="gate"):
        registry.open_rollout("mail", adapter.name, POLICY, **BY)
    with pytest.raises(RolloutRefused, match="reason"):
        registry.open_rollout("mail", adapter.name, POLICY, gate_override=" ", **BY)
    assert registry.rollouts() == []
    rollout = registry.open_rollout("mail", adapter.name, POLICY, gate_override="a drill", **BY)
    assert rollout.gate_override == "a drill"
    (event,) = registry.events(rollout.id)
    assert event.evidence["gate_override"] == "a drill"


def test_a_pass_is_outdone_by_what_was_kept_later(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1, "pass")
    for number, verdict in enumerate(("inconclusive", "pass"), 1):
        if number == 2:
            with pytest.raises(RolloutRefused, match=r"inconclusive.*judge .* --keep"):
                registry.open_rollout("mail", adapter.name, POLICY, **BY)
        registry.record_scorecard(
            digest=digest(f"kept {number}"),
            adapter=adapter.name,
            dataset_digest=adapter.dataset_digest,
            body={},
            gate={"verdict": verdict},
            now=NOW + number * MINUTE,
        )
    assert registry.open_rollout("mail", adapter.name, POLICY, **BY).adapter == adapter.name


def test_the_latest_verdict_counts(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1, "pass")
    add_adapter(registry, "mail", 1, "fail", now=NOW + MINUTE)
    assert [card.verdict for card in registry.scorecards(adapter.name)] == ["fail", "pass"]
    with pytest.raises(RolloutRefused, match="is fail"):
        registry.open_rollout("mail", adapter.name, POLICY, **BY)


def test_a_rejected_digest_is_never_retried(registry: Registry) -> None:
    # devantler-tech/platform#2387, argo-rollouts#2048: the failed one came back.
    adapter = add_adapter(registry, "mail", 1)
    registry.set_adapter_state(adapter.name, "rejected", **BY)
    for override in (None, "I insist"):
        with pytest.raises(RolloutRefused, match="never retried"):
            registry.open_rollout("mail", adapter.name, POLICY, gate_override=override, **BY)
    # The same weights under another task's name are the same weights.
    add_task(registry.database, "calls")
    other = add_adapter(registry, "calls", 1)
    twin = {**vars(other), "digest": adapter.digest, "name": f"calls@{adapter.digest[:16]}"}
    del twin["state"], twin["created"]
    registry.register_adapter(**twin)
    with pytest.raises(RolloutRefused, match="never retried"):
        registry.open_rollout("calls", twin["name"], POLICY, gate_override="drill", **BY)
    # A new digest starts clean.
    assert registry.open_rollout("mail", add_adapter(registry, "mail", 2).name, POLICY, **BY).open


def test_champions_foreigners_and_held_back_tasks_are_refused(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    add_task(registry.database, "calls")
    with pytest.raises(RolloutRefused, match="belongs to task mail"):
        registry.open_rollout("calls", adapter.name, POLICY, **BY)
    registry.set_task_policy("mail", "teacher", **BY)
    with pytest.raises(RolloutRefused, match="teacher only"):
        registry.open_rollout("mail", adapter.name, POLICY, **BY)
    registry.set_task_policy("mail", "specialize", **BY)
    registry.set_route("mail", 0, None, champion=adapter.name, **BY)
    with pytest.raises(RolloutRefused, match="champion"):
        registry.open_rollout("mail", adapter.name, POLICY, **BY)
    registry.set_adapter_state(add_adapter(registry, "mail", 2).name, "retired", **BY)
    with pytest.raises(RolloutRefused, match="retired"):
        registry.open_rollout("mail", add_adapter(registry, "mail", 2).name, POLICY, **BY)


def test_a_new_adapter_supersedes_and_inherits_nothing(registry: Registry) -> None:
    # flagger#30: a new version mid-canary went on with the old one's checks.
    one, two = (add_adapter(registry, "mail", number) for number in (1, 2))
    old = registry.open_rollout("mail", one.name, POLICY, now=NOW, **BY)
    policy = replace(POLICY, when_open="supersede")
    new = registry.open_rollout("mail", two.name, policy, now=NOW + MINUTE, **BY)
    assert registry.rollout(old.id).state == "superseded"
    assert registry.adapter(one.name).state == "registered", "superseded is not rejected"
    assert (new.state, new.sessions) == ("pending", 0)
    assert set(new.evidence) == {"salt", "champion", "step"}
    assert new.salt != old.salt
    route = registry.route("mail")
    assert (route.candidate, route.rollout_id, route.salt, route.weight) == (
        two.name,
        new.id,
        new.salt,
        0,
    )


def test_a_queued_rollout_waits_and_only_the_newest_does(registry: Registry) -> None:
    one, two, three = (add_adapter(registry, "mail", number) for number in (1, 2, 3))
    first = registry.open_rollout("mail", one.name, POLICY, now=NOW, **BY)
    second = registry.open_rollout("mail", two.name, POLICY, now=NOW + MINUTE, **BY)
    assert second.state == "pending" and second.champion is None
    third = registry.open_rollout("mail", three.name, POLICY, now=NOW + 2 * MINUTE, **BY)
    assert registry.rollout(second.id).state == "superseded"
    assert registry.rollouts("open", task_id="mail") == [first, third]
    assert registry.route("mail").rollout_id == first.id


def test_a_rollout_moves_by_compare_and_swap_along_the_table(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    read = registry.open_rollout("mail", adapter.name, POLICY, now=NOW, **BY)

    def write(current: Rollout, **changes: Any) -> Rollout:
        with registry.database.begin() as connection:
            return write_rollout(connection, current, changes, actor="test", now=NOW + MINUTE)

    with pytest.raises(IllegalState, match="promoted may not follow"):
        write(read, state="promoted")
    moved = write(read, state="shadow")
    assert (moved.version, moved.entered) == (read.version + 1, NOW + MINUTE)
    for stale in (read, replace(moved, state="pending"), replace(moved, version=9)):
        with pytest.raises(RolloutChanged):
            write(stale, state="canary")
    ended = write(moved, state="inconclusive")
    for changes in ({"state": "promoted"}, {"state": "canary"}, {"reason": "second thoughts"}):
        with pytest.raises(IllegalState):
            write(ended, **changes)
    assert registry.rollout(read.id) == ended
    assert whats(registry, read.id) == [
        "rollout.opened",
        "rollout.shadow",
        "rollout.inconclusive",
    ]


@pytest.mark.parametrize("when_open", ["queue", "supersede"])
def test_rollouts_opened_at_once_leave_one_on_the_route(registry: Registry, when_open: str) -> None:
    adapters: list[Adapter] = [add_adapter(registry, "mail", number) for number in range(4)]
    policy = replace(POLICY, when_open=when_open)  # type: ignore[arg-type]
    results = at_once(
        *(
            lambda adapter=adapter: registry.open_rollout("mail", adapter.name, policy, **BY)
            for adapter in adapters
        )
    )
    assert not [result for result in results if isinstance(result, Exception)], results
    still_open = registry.rollouts("open")
    assert len(still_open) == (2 if when_open == "queue" else 1)
    assert registry.route("mail").rollout_id in {rollout.id for rollout in still_open}
    assert len(registry.rollouts("superseded")) == 4 - len(still_open)


def test_the_same_rollout_opened_at_once_is_one(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    results = at_once(
        *(lambda: registry.open_rollout("mail", adapter.name, POLICY, **BY) for _ in range(4))
    )
    assert len({result.id for result in results}) == 1
