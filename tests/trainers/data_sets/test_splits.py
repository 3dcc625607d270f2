from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.recorded import START, call, home, ticket
from trainers.data_sets.labels import Example
from trainers.data_sets.splits import SPLITS, prompt_format, separated, split_by_session


def example(number, session, minute=0, request=None):
    time = START + timedelta(minutes=minute)
    request = request or {"messages": []}
    return Example(f"c{number}", session, time, request, {"content": "x"}, 1.0, "teacher", "s")


def sizes(count):
    split = split_by_session([example(n, f"s{n:03d}", n) for n in range(count)])
    return tuple(len(split[name]) for name in SPLITS)


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (10, (6, 2, 2)),
        (100, (65, 15, 20)),
    ],
)
def test_the_shares_of_the_splits(sessions, expected):
    assert sizes(sessions) == expected


examples = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 500)), max_size=60).map(
    lambda pairs: [example(n, f"s{s}", minute) for n, (s, minute) in enumerate(pairs)]
)


@given(examples, st.randoms())
def test_sessions_never_cross_and_the_newest_are_in_test(rows, dice):
    split = split_by_session(rows)
    assert sorted(e.call_id for name in SPLITS for e in split[name]) == sorted(
        e.call_id for e in rows
    )
    sessions = {name: {e.session for e in split[name]} for name in SPLITS}
    assert sum(map(len, sessions.values())) == len({e.session for e in rows})
    newest = {s: max(e.time for e in rows if e.session == s) for s in {e.session for e in rows}}
    for older, newer in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for a in sessions[older]:
            assert all(newest[a] <= newest[b] for b in sessions[newer])
    shuffled = list(rows)
    dice.shuffle(shuffled)
    assert split_by_session(shuffled) == split


@given(examples, st.integers(1, 8))
def test_no_near_copy_in_two_splits_and_no_test_older_than_train(rows, groups):
    leaders = {e.call_id: f"c{int(e.call_id[1:]) % groups}" for e in rows}
    before = split_by_session(rows)
    split, lost = separated(before, leaders)
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not {leaders[e.call_id] for e in split[a]} & {leaders[e.call_id] for e in split[b]}
    newest = max((e.time for e in split["train"]), default=START)
    assert all(e.time >= newest for e in split["test"])
    assert sum(map(len, split.values())) + lost.total() == len(rows)
    assert bool(split["train"]) == bool(rows)
    assert all(e in before[name] for name in SPLITS for e in split[name])


def test_what_is_not_tied_stays():
    rows = [example(n, f"s{n:03d}", n) for n in range(50)]
    before = split_by_session(rows)
    assert separated(before, {e.call_id: e.call_id for e in rows}) == (before, {})


def test_repeated_prompts_are_shared_out_so_that_every_split_has_some():
    rows = [example(n, f"s{n:03d}", n) for n in range(1000)]
    split, lost = separated(
        split_by_session(rows), {e.call_id: f"c{int(e.call_id[1:]) % 20}" for e in rows}
    )
    assert lost["near-copy"] > 0
    shares = [len(split[name]) / size for name, size in zip(SPLITS, (650, 150, 200), strict=True)]
    assert all(0.25 < share < 0.45 for share in shares)


def test_sessions_side_by_side_lose_rows_on_both_sides():
    rows = [example(n, f"s{n % 10}", n) for n in range(1000)]
    before = split_by_session(rows)
    split, lost = separated(before, {e.call_id: e.call_id for e in rows})
    assert lost["out-of-time"] > 0
    for name in ("train", "test"):
        assert 0.4 < len(split[name]) / len(before[name]) < 0.6


def requests(records):
    return [example(n, "s", n, record.request) for n, record in enumerate(records)]


def test_what_is_constant_is_dropped_and_nothing_else():
    constant = prompt_format(requests([home(n) for n in range(3)]))
    assert (constant.drop_system, constant.drop_tools, constant.drop_response_format) == (
        True,
        True,
        False,
    )
    dated = prompt_format(requests([ticket(n) for n in range(3)]))
    assert (dated.drop_system, dated.drop_tools, dated.drop_response_format) == (False, False, True)
    varied = requests([home(1), call(2, system="You control a home.")])
    assert not prompt_format(varied).drop_tools
    assert prompt_format(varied).drop_system
