"""Which adapters keep their places, as a pure function and by its promises on any history."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.residents import residents

NAMES = [f"t{number}" for number in range(8)]


def decide(**more: Any) -> set[str]:
    given_: dict[str, Any] = {
        "routed": NAMES[:5],
        "pinned": set(),
        "since": {"t0": 0.0, "t1": 0.0, "t2": 0.0},
        "used": {},
        "waiting": {},
        "most": 3,
        "now": 1000.0,
        "residence_seconds": 60.0,
        **more,
    }
    return set(residents(given_.pop("routed"), **given_))


def test_an_empty_engine_is_filled_with_what_is_called_then_with_what_is_routed_first() -> None:
    assert decide(since={}) == {"t0", "t1", "t2"}
    assert decide(since={}, waiting={"t4": 999.0}) == {"t4", "t0", "t1"}


def test_nothing_moves_without_a_call() -> None:
    assert decide() == {"t0", "t1", "t2"}
    assert decide(used={"t4": 500.0, "t0": 1.0}) == {"t0", "t1", "t2"}


def test_a_called_one_takes_the_place_of_the_one_called_longest_ago() -> None:
    used = {"t0": 900.0, "t1": 800.0, "t2": 950.0}
    assert decide(used=used, waiting={"t4": 999.0}) == {"t0", "t2", "t4"}
    assert decide(used=used, waiting={"t4": 999.0, "t3": 998.0}) == {"t2", "t3", "t4"}


def test_a_place_is_kept_for_a_while_and_never_lost_to_somebody_colder() -> None:
    young = {"t0": 970.0, "t1": 970.0, "t2": 970.0}
    assert decide(since=young, waiting={"t4": 999.0}) == {"t0", "t1", "t2"}
    used = {"t0": 999.5, "t1": 999.5, "t2": 999.5}
    assert decide(used=used, waiting={"t4": 999.0}) == {"t0", "t1", "t2"}


def test_candidates_come_at_once_and_stay_whoever_is_called() -> None:
    young = {"t0": 999.0, "t1": 999.1, "t2": 999.2}
    assert decide(since=young, pinned={"t4"}) == {"t1", "t2", "t4"}
    pinned = {"t0", "t1", "t2"}
    assert decide(pinned=pinned, waiting={"t3": 999.0, "t4": 999.0}) == pinned


def test_the_newcomer_stays_when_both_are_there_until_the_old_one_has_gone() -> None:
    used = {"t0": 900.0, "t1": 800.0, "t2": 950.0, "t4": 999.0}
    since = {"t0": 0.0, "t1": 0.0, "t2": 0.0, "t4": 999.5}
    assert decide(since=since, used=used) == {"t0", "t2", "t4"}


def test_what_no_route_names_any_more_goes() -> None:
    assert decide(routed=["t1", "t4"], most=3) == {"t1", "t4"}


times = st.floats(0, 1000)
some = st.dictionaries(st.sampled_from(NAMES), times)


@given(
    routed=st.lists(st.sampled_from(NAMES), unique=True),
    pinned=st.sets(st.sampled_from(NAMES)),
    since=some,
    used=some,
    waiting=some,
    most=st.integers(1, 8),
    residence_seconds=st.floats(1, 2000),
)
def test_promises(
    routed: list[str],
    pinned: set[str],
    since: dict[str, float],
    used: dict[str, float],
    waiting: dict[str, float],
    most: int,
    residence_seconds: float,
) -> None:
    goal = residents(
        routed,
        pinned=pinned,
        since=since,
        used=used,
        waiting=waiting,
        most=most,
        now=1000.0,
        residence_seconds=residence_seconds,
    )
    assert len(goal) == len(set(goal)) <= most
    assert set(goal) <= set(routed)
    assert len(goal) == min(most, len(routed)), "no place stays empty"
    wanted = pinned & set(routed)
    assert wanted <= set(goal) or len(wanted) > most
    # Who lost its place had to make room for a candidate, was too many, or had its time.
    room = most - len([name for name in goal if name in pinned])
    there = [name for name in routed if name in since and name not in pinned]
    evicted = set(there) - set(goal)
    if len(there) <= room:
        assert all(1000.0 - since[name] >= residence_seconds for name in evicted)
        assert len(evicted) <= len([n for n in goal if n in waiting and n not in since])


@given(calls=st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0.1, 30)), max_size=60))
def test_a_place_changes_hands_at_most_once_in_its_time(calls: list[tuple[str, float]]) -> None:
    """However the calls come: an engine of three places that does at once what is decided."""
    now, since, used, waiting = 0.0, dict[str, float](), dict[str, float](), dict[str, float]()
    loads = 0
    for name, pause in calls:
        now += pause
        used[name] = now
        if name not in since:
            waiting[name] = now
        goal = residents(
            NAMES,
            pinned=(),
            since=since,
            used=used,
            waiting=waiting,
            most=3,
            now=now,
            residence_seconds=60.0,
        )
        loads += len(set(goal) - since.keys())
        since = {name: since.get(name, now) for name in goal}
        waiting = {name: at for name, at in waiting.items() if name not in since}
    assert loads <= 3 * (1 + now / 60.0)
