"""What the registry promises of names, routes and histories, on every database: SQLite and PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.registry.errors import (
    AdapterInUse,
    AdapterNameReused,
    DatasetConflict,
    IllegalState,
    RegistryError,
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
from serving.registry.records import TEACHER, Route
from serving.registry.registry import Registry
from serving.registry.routes import touch_route, wanted_adapters, write_route
from tests.contracts.registry_steps import BY, POLICY, at_once, whats
from tests.serving.registry.world import MINUTE, NOW, add_adapter, add_task, digest


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


def test_a_change_of_what_was_read_before_is_refused(registry: Registry) -> None:
    # Whoever reads without the task's lock, as ``set_route`` does not, is held by the row itself.
    def refused(stale: Route) -> None:
        change = {"champion": TEACHER}
        with pytest.raises(RouteChanged), registry.database.begin() as connection:
            write_route(connection, stale, change, fence=None, what="x", now=NOW, **BY)
        with pytest.raises(RouteChanged), registry.database.begin() as connection:
            touch_route(connection, stale, fence=1, now=NOW)

    one, two = (add_adapter(registry, "mail", number) for number in (1, 2))
    absent = registry.route("mail")
    read = registry.set_route("mail", 0, None, champion=one.name, **BY)
    refused(absent)
    untended = registry.set_route("mail", 1, None, champion=two.name, **BY)
    refused(read)
    with registry.database.begin() as connection:
        touch_route(connection, untended, fence=1, now=NOW)
    refused(untended)
    assert registry.route("mail").champion == two.name


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
