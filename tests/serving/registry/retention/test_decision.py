"""What may go: whatever the state of the registry, never what a route or a rollout names."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.operating import Retention
from serving.registry.retention.decision import (
    DatasetStay,
    Inventory,
    Stay,
    belongings,
    decide,
    kind_of,
)
from tests.serving.registry.world import NOW, digest

DAY = timedelta(days=1)
HARSH = Retention(
    adapter_seconds=0,
    adapters_per_task=1,
    past_champions=1,
    dataset_seconds=0,
    datasets_per_task=1,
    grace_seconds=0,
)
TASKS = ("mail", "orders")


def stay(number: int, task: str = "mail", state="registered", days: float = 90, data: int = 0):
    weights = digest(f"{task} {number}")
    return Stay(
        name=f"{task}@{weights[:16]}",
        task_id=task,
        location=f"adapters/{task}/{weights}",
        dataset_digest=digest(f"data {task} {data}"),
        state=state,
        created=NOW - days * DAY + timedelta(seconds=number),
        last=NOW - days * DAY + timedelta(seconds=number),
    )


def data(number: int, task: str = "mail", days: float = 90) -> DatasetStay:
    name = digest(f"data {task} {number}")
    return DatasetStay(name, task, f"datasets/{task}/{name}", NOW - days * DAY)


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    datasets = [data(n, task, draw(st.floats(0, 200))) for task in TASKS for n in range(3)]
    adapters = [
        stay(
            number,
            draw(st.sampled_from(TASKS)),
            draw(st.sampled_from(["registered", "rejected", "retired"])),
            draw(st.floats(-1, 400)),
            draw(st.integers(0, 2)),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    names = [one.name for one in adapters]
    some = st.lists(st.sampled_from(names), unique=True) if names else st.just([])
    places = [one.location for one in [*adapters, *datasets]]
    orphans = [f"adapters/mail/{digest(str(n))}" for n in range(draw(st.integers(0, 2)))]
    return Inventory(
        now=NOW,
        adapters=tuple(adapters),
        datasets=tuple(datasets),
        routed=dict.fromkeys(draw(some), "champion"),
        rolling=dict.fromkeys(draw(some), "r"),
        draining=frozenset(draw(some)),
        past_champions={task: tuple(draw(some)) for task in TASKS},
        stored=frozenset([*places, *orphans, "reports/x/y"]),
        marks=draw(
            st.dictionaries(
                st.sampled_from(places), st.sampled_from(["marked", "condemned", "removed"])
            )
        ),
    )


policies = st.builds(
    Retention,
    adapter_seconds=st.floats(0, 1e7),
    adapters_per_task=st.integers(1, 5),
    past_champions=st.integers(1, 5),
    dataset_seconds=st.floats(0, 1e7),
    datasets_per_task=st.integers(1, 5),
)


@given(inventories(), policies)
def test_what_a_route_or_a_rollout_names_never_goes_nor_what_it_learned_from(
    inventory: Inventory, policy: Retention
) -> None:
    verdicts = {one.subject: one for one in decide(inventory, policy)}
    by_name = {one.name: one for one in inventory.adapters}
    for name in {*inventory.routed, *inventory.rolling, *inventory.draining}:
        # An adapter whose files were removed and are gone has nothing left to decide on.
        assert verdicts[name].keep
        assert verdicts[by_name[name].dataset_digest].keep


@given(inventories(), policies)
def test_the_last_ones_and_the_targets_of_a_rollback_never_go(
    inventory: Inventory, policy: Retention
) -> None:
    verdicts = {one.subject: one for one in decide(inventory, policy)}
    whole = [
        one
        for one in inventory.adapters
        if inventory.marks.get(one.location) not in ("condemned", "removed")
    ]
    for task in TASKS:
        own = sorted((one for one in whole if one.task_id == task), key=lambda one: one.created)
        for one in own[-policy.adapters_per_task :]:
            assert verdicts[one.name].keep
        may_answer = {
            one.name
            for one in inventory.adapters
            if one.task_id == task and one.state == "registered"
        }
        targets = [name for name in inventory.past_champions[task] if name in may_answer]
        for name in targets[: policy.past_champions]:
            assert verdicts[name].keep


@given(inventories(), policies)
def test_there_is_one_verdict_for_each_thing_with_its_reason(
    inventory: Inventory, policy: Retention
) -> None:
    verdicts = decide(inventory, policy)
    locations = [one.location for one in verdicts]
    assert len(locations) == len(set(locations))
    assert all(one.why for one in verdicts)
    assert decide(inventory, policy) == verdicts
    known = {one.location for one in (*inventory.adapters, *inventory.datasets)}
    assert {one.location for one in verdicts if one.orphan} == {
        place for place in inventory.stored - known if kind_of(place)
    }


def test_each_reason_to_keep_an_adapter_is_enough_and_without_one_it_goes() -> None:
    old = [stay(number) for number in range(6)]
    champion, candidate, draining, past, unnamed, newest = old
    inventory = Inventory(
        now=NOW,
        adapters=tuple(old),
        routed={champion.name: "champion"},
        rolling={candidate.name: "r1"},
        draining=frozenset({draining.name}),
        past_champions={"mail": ("teacher", past.name, unnamed.name)},
    )
    told = {one.subject: one.why for one in decide(inventory, HARSH) if one.keep}
    assert told == {
        champion.name: "it is the champion of mail",
        candidate.name: "rollout r1 is open",
        draining.name: "it was on a route a moment ago",
        past.name: "a rollback may go back to it",
        newest.name: "it is one of the 1 newest of mail",
    }
    (gone,) = (one for one in decide(inventory, HARSH) if not one.keep)
    assert gone.subject == unnamed.name
    assert gone.why == "registered, named by nothing, untouched for 90 days"
    patient = HARSH.model_copy(update={"adapter_seconds": 100 * 86400})
    assert all(one.keep for one in decide(inventory, patient))


def test_a_rejected_past_champion_is_no_target_and_makes_room_for_the_one_before() -> None:
    adapters = (stay(1), stay(2, state="rejected"), stay(3, days=1))
    past = {"mail": (adapters[1].name, adapters[0].name)}
    verdicts = decide(Inventory(now=NOW, adapters=adapters, past_champions=past), HARSH)
    assert [one.keep for one in verdicts] == [True, False, True]


def test_a_data_set_stays_while_an_adapter_that_may_be_wanted_again_learned_from_it() -> None:
    adapters = (stay(1, data=0), stay(2, data=1), stay(3, data=2))
    datasets = (data(0), data(1), data(2))
    inventory = Inventory(
        now=NOW,
        adapters=adapters,
        datasets=datasets,
        marks={adapters[0].location: "marked", adapters[1].location: "condemned"},
        stored=frozenset({adapters[1].location}),
    )
    verdicts = {one.subject: one.keep for one in decide(inventory, HARSH)}
    assert not verdicts[adapters[0].name]
    assert verdicts[datasets[0].digest]
    # The newest by digest where the times are the same.
    newest = max(one.digest for one in datasets)
    assert verdicts[datasets[1].digest] is (datasets[1].digest == newest)


def test_what_was_removed_is_spoken_of_again_only_if_its_files_are_back() -> None:
    one = stay(1, state="retired")
    removed = Inventory(now=NOW, adapters=(one,), marks={one.location: "removed"})
    assert decide(removed, HARSH) == []
    back = Inventory(
        now=NOW,
        adapters=(one,),
        marks={one.location: "removed"},
        stored=frozenset({one.location}),
    )
    (verdict,) = decide(back, HARSH)
    assert (verdict.keep, verdict.why) == (False, "it was let go before")


def test_only_the_places_of_adapters_and_data_sets_are_anybody_s_to_clear() -> None:
    for place in ("logs/v1/dt=2026-05-01", "adapters/mail", "reports/a/b", "adapters/a/b/c"):
        assert kind_of(place) is None
        with pytest.raises(ValueError, match="neither"):
            belongings(place)
    assert belongings("adapters/mail/" + "a" * 64) == (
        f"adapters/mail/{'a' * 64}/",
        f"reports/mail@{'a' * 16}/",
    )
