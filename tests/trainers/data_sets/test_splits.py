from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.recorded import START, call, home, ticket
from trainers.data_sets.labels import Example
from trainers.data_sets.splits import SPLITS, prompt_format, split_by_session


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
