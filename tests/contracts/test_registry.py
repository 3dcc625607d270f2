"""What the registry promises, on every database: SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from infra.database.events import list_events
from infra.database.open import Database
from serving.registry import keys
from serving.registry.errors import (
    AdapterInUse,
    AdapterNameReused,
    DatasetConflict,
    IllegalState,
    RegistryError,
    RolloutChanged,
    RolloutRefused,
    RouteChanged,
    RouteInvalid,
    StaleFence,
    UnknownAdapter,
    UnknownDataset,
    UnknownKey,
    UnknownRollout,
    UnknownTask,
)
from serving.registry.openings import write_rollout
from serving.registry.records import TEACHER, Adapter, Rollout
from serving.registry.registry import Registry
from serving.registry.routes import wanted_adapters
from serving.rollout.policy import RolloutPolicy
from tests.serving.registry.world import MINUTE, NOW, add_adapter, add_task, digest

POLICY = RolloutPolicy(cooldown_seconds=600)
BY = {"actor": "test", "why": "because"}


@pytest.fixture
def registry(each_database: Database) -> Registry:
    add_task(each_database, "mail")
    return Registry(each_database)


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Run each action in its own thread, all starting together; results or exceptions."""
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def run(position: int, action: Callable[[], Any]) -> None:
        barrier.wait(timeout=30)
        try:
            results[position] = action()
        except Exception as error:  # noqa: BLE001 - the test looks at what was raised
            results[position] = error

    threads = [
        threading.Thread(target=run, args=(position, action))
        for position, action in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def whats(registry: Registry, subject: str) -> list[str]:
    return [event.what for event in reversed(registry.events(subject, limit=1000))]


# Names and what stands behind them


def test_registering_the_same_again_is_no_error_and_leaves_one_event(registry: Registry) -> None:
    first = add_adapter(registry, "mail", 1)
    again = add_adapter(registry, "mail", 1, now=NOW + MINUTE)
    assert again == first
    assert registry.adapter(first.name) == first
    assert whats(registry, first.name) == ["adapter.registered"]
    assert len(registry.datasets("mail")) == 1


def test_a_name_never_stands_for_something_else(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    same = {**vars(adapter)}
    del same["state"], same["created"]
    assert registry.register_adapter(**same) == adapter
    nudged = {**same, "threshold": adapter.threshold + 1e-6}  # type: ignore[operator]
    assert registry.register_adapter(**nudged).threshold == adapter.threshold
    for change in (
        {"digest": adapter.digest[:16] + "0" * 48},
        {"spec_digest": digest("other")},
        {"location": "adapters/elsewhere"},
        {"threshold": -0.5},
        {"threshold": None},
    ):
        with pytest.raises(AdapterNameReused, match="never used twice"):
            registry.register_adapter(**{**same, **change})
    with pytest.raises(ValueError, match="named by task and digest"):
        registry.register_adapter(**{**same, "name": "mail@latest"})


def test_a_rejected_name_is_not_brought_back_by_registering_it_again(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    registry.set_adapter_state(adapter.name, "rejected", **BY)
    assert add_adapter(registry, "mail", 1).state == "rejected"
    with pytest.raises(IllegalState):
        registry.set_adapter_state(adapter.name, "registered", **BY)
    assert registry.set_adapter_state(adapter.name, "rejected", **BY).state == "rejected"
    assert whats(registry, adapter.name) == ["adapter.registered", "adapter.rejected"]


def test_data_sets_are_recorded_once(registry: Registry) -> None:
    add_task(registry.database, "calls")
    values = {"digest": digest("d"), "task_id": "mail", "location": "x", "manifest": {"rows": 3}}
    first = registry.record_dataset(**values)
    assert registry.record_dataset(**values) == first == registry.dataset(digest("d"))
    with pytest.raises(DatasetConflict):
        registry.record_dataset(**{**values, "task_id": "calls"})
    with pytest.raises(UnknownTask):
        registry.record_dataset(**{**values, "task_id": "nobody"})


def test_what_is_unknown_is_said_to_be(registry: Registry) -> None:
    for ask, error in (
        (lambda: registry.task("no"), UnknownTask),
        (lambda: registry.route("no"), UnknownTask),
        (lambda: registry.history("no"), UnknownTask),
        (lambda: registry.adapter("no"), UnknownAdapter),
        (lambda: registry.lineage("no"), UnknownAdapter),
        (lambda: registry.dataset("no"), UnknownDataset),
        (lambda: registry.rollout("no"), UnknownRollout),
        (lambda: registry.open_rollout("no", "no", POLICY, **BY), UnknownTask),
        (lambda: registry.open_rollout("mail", "no", POLICY, **BY), UnknownAdapter),
    ):
        with pytest.raises(error):
            ask()


# The route: compare-and-swap, fence, event


def test_a_task_without_a_route_is_the_teachers(registry: Registry) -> None:
    route = registry.route("mail")
    assert (route.champion, route.candidate, route.weight, route.version) == (TEACHER, None, 0, 0)
    assert registry.routes() == []


def test_a_change_and_its_event_are_one(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    route = registry.set_route(
        "mail", 0, 3, champion=adapter.name, evidence={"score": 0.9}, now=NOW, **BY
    )
    assert (route.champion, route.version, route.fence, route.updated) == (
        adapter.name,
        1,
        3,
        NOW,
    )
    assert registry.route("mail") == route
    assert registry.routes() == [route]
    (event,) = registry.events("mail")
    assert (event.actor, event.what, event.why) == ("test", "route.changed", "because")
    assert event.evidence == {"score": 0.9}
    assert event.previous["champion"] == TEACHER
    assert event.current["champion"] == adapter.name
    assert event.time == NOW


def test_a_change_decided_on_an_old_version_is_refused(registry: Registry) -> None:
    one, two = (add_adapter(registry, "mail", number) for number in (1, 2))
    registry.set_route("mail", 0, None, champion=one.name, **BY)
    for stale in (0, 2):
        with pytest.raises(RouteChanged, match="at version 1"):
            registry.set_route("mail", stale, None, champion=two.name, **BY)
    assert registry.route("mail").champion == one.name
    assert len(registry.events("mail")) == 1


def test_a_late_holder_is_fenced_off(registry: Registry) -> None:
    one, two = (add_adapter(registry, "mail", number) for number in (1, 2))
    registry.set_route("mail", 0, 5, champion=one.name, **BY)
    with pytest.raises(StaleFence):
        registry.set_route("mail", 1, 4, champion=two.name, **BY)
    assert registry.set_route("mail", 1, 5, champion=two.name, **BY).version == 2
    # A person has no fence and does not lower it.
    assert registry.set_route("mail", 2, None, champion=one.name, **BY).fence == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": 1.5},
        {"weight": 0.1},
        {"stage": "canary", "weight": 0.1},
        {"stage": "everywhere"},
        {"champion": "nobody@0"},
        {"candidate": "CANDIDATE"},
        {"candidate": "CANDIDATE", "rollout_id": "r"},
        {"candidate": "CANDIDATE", "rollout_id": "r", "salt": "s", "champion": "CANDIDATE"},
        {"candidate": "CANDIDATE", "rollout_id": "r", "salt": "s", "weight": 0.5},
        {"candidate": TEACHER, "rollout_id": "r", "salt": "s"},
        {"champion": "FOREIGN"},
        {"champion": "REJECTED"},
        {"version": 9},
    ],
)
def test_a_route_that_contradicts_itself_is_refused(
    registry: Registry, changes: dict[str, Any]
) -> None:
    add_task(registry.database, "calls")
    rejected = add_adapter(registry, "mail", 2)
    registry.set_adapter_state(rejected.name, "rejected", **BY)
    names = {
        "CANDIDATE": add_adapter(registry, "mail", 1).name,
        "FOREIGN": add_adapter(registry, "calls", 1).name,
        "REJECTED": rejected.name,
    }
    with pytest.raises(RouteInvalid):
        registry.set_route(
            "mail", 0, None, **BY, **{k: names.get(v, v) for k, v in changes.items()}
        )
    assert registry.route("mail").version == 0
    assert registry.events("mail") == []


def test_of_many_writers_at_once_exactly_one_wins(registry: Registry) -> None:
    adapters = [add_adapter(registry, "mail", number) for number in range(4)]
    for version in range(3):
        results = at_once(
            *(
                lambda adapter=adapter, version=version: registry.set_route(
                    "mail", version, None, champion=adapter.name, **BY
                )
                for adapter in adapters
                if adapter.name != registry.route("mail").champion
            )
        )
        winners = [result for result in results if not isinstance(result, Exception)]
        assert len(winners) == 1
        assert all(
            isinstance(result, RouteChanged) for result in results if result not in winners
        ), results
        assert registry.route("mail") == winners[0]
    assert len(registry.events("mail")) == 3


def test_an_adapter_on_a_route_is_not_retired_from_beside(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    registry.set_route("mail", 0, None, champion=adapter.name, **BY)
    for state in ("retired", "rejected"):
        with pytest.raises(AdapterInUse, match="nightschool rollback mail"):
            registry.set_adapter_state(adapter.name, state, **BY)


def test_engines_keep_an_adapter_until_it_is_drained(registry: Registry) -> None:
    # flagger#1591, #1931: the old side was taken away while it still answered.
    one, two = (add_adapter(registry, "mail", number) for number in (1, 2))
    registry.set_route("mail", 0, None, champion=one.name, now=NOW, **BY)
    registry.set_route("mail", 1, None, champion=two.name, now=NOW + MINUTE, **BY)
    soon, later = NOW + 2 * MINUTE, NOW + 10 * MINUTE
    with registry.database.read() as connection:
        assert wanted_adapters(connection, soon, 120) == {one.name, two.name}
        assert wanted_adapters(connection, later, 120) == {two.name}
    assert registry.past_champions("mail") == [one.name, TEACHER]


# Opening a rollout


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


# What happened


def test_lineage_and_history_tell_the_whole_story(registry: Registry) -> None:
    adapter = add_adapter(registry, "mail", 1)
    rollout = registry.open_rollout("mail", adapter.name, POLICY, **BY)
    line = registry.lineage(adapter.name)
    assert line.adapter == adapter
    assert line.dataset.digest == adapter.dataset_digest
    assert line.source_objects == ("logs/v1/a", "logs/v1/b")
    assert (line.base_model, line.base_digest) == ("base", digest("base"))
    assert [card.verdict for card in line.scorecards] == ["pass"]
    assert [one.id for one in line.rollouts] == [rollout.id]
    add_task(registry.database, "calls")
    add_adapter(registry, "calls", 1)
    history = registry.history("mail")
    assert {event.subject for event in history} == {"mail", adapter.name, rollout.id}
    assert [event.id for event in history] == sorted((e.id for e in history), reverse=True)
    assert len(registry.history("mail", limit=2)) == 2
    assert json.dumps([event.evidence for event in history])


def test_a_tasks_policy_changes_with_an_event(registry: Registry) -> None:
    assert registry.set_task_policy("mail", "shadow", **BY).policy == "shadow"
    assert registry.set_task_policy("mail", "shadow", **BY).version == 2
    assert whats(registry, "mail") == ["task.policy"]
    assert registry.tasks("candidate")[0].centroid == (0.6, 0.8)
    assert registry.tasks("retired") == []
    with pytest.raises(ValueError, match="specialize, shadow or teacher"):
        registry.set_task_policy("mail", "yolo", **BY)  # type: ignore[arg-type]


def test_every_error_is_a_registry_error() -> None:
    for error in (RouteChanged, StaleFence, UnknownKey, RolloutRefused, AdapterNameReused):
        assert issubclass(error, RegistryError)


# API keys


def test_a_key_is_shown_once_and_stored_as_a_hash(registry: Registry) -> None:
    database = registry.database
    plaintext = keys.create_key(database, "acme", "call", "agents", now=NOW)
    (kept,) = keys.list_keys(database)
    assert (kept.tenant, kept.role, kept.label, kept.revoked) == ("acme", "call", "agents", None)
    assert kept.hash == keys.hash_key(plaintext)
    assert keys.find_key(database, plaintext) == kept
    assert keys.find_key(database, plaintext + "x") is None
    with database.read() as connection:
        everything = repr([vars(event) for event in list_events(connection)]) + repr(kept)
    assert plaintext not in everything
    assert keys.create_key(database, "acme", "call", "") != plaintext
    assert keys.list_keys(database, "other") == []


def test_a_revoked_key_opens_nothing(registry: Registry) -> None:
    database = registry.database
    plaintext = keys.create_key(database, "acme", "admin", "ops")
    kept = keys.find_key(database, plaintext)
    assert kept is not None
    first = keys.revoke_key(database, kept.id, now=NOW)
    assert first.revoked == NOW
    assert keys.find_key(database, plaintext) is None
    assert keys.revoke_key(database, kept.id, now=NOW + timedelta(days=1)) == first
    assert whats(registry, kept.id) == ["key.created", "key.revoked"]
    for wrong in ("0" * 8 if not kept.hash.startswith("0" * 8) else "1" * 8, "abc", "%" * 8):
        with pytest.raises(UnknownKey):
            keys.revoke_key(database, wrong)


@pytest.mark.parametrize(
    ("tenant", "role", "label"),
    [("", "call", "x"), ("t", "root", "x"), ("t", "call", "x" * 101), ("t" * 101, "call", "x")],
)
def test_a_key_without_a_proper_owner_is_not_made(
    registry: Registry, tenant: str, role: str, label: str
) -> None:
    with pytest.raises(ValueError):
        keys.create_key(registry.database, tenant, role, label)  # type: ignore[arg-type]
    assert keys.list_keys(registry.database) == []
