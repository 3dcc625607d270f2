"""The storm's own counting: what it sends, and what it does not let pass."""

from __future__ import annotations

from collections import Counter

from bench.webhooks import good, plan


def test_five_in_a_hundred_are_repeats_and_five_are_forged() -> None:
    planned = plan(1000, 1)
    kinds = Counter(kind for kind, _ in planned)
    assert kinds == {"new": 900, "repeat": 50, "forged": 50}
    new = {message_id for kind, message_id in planned if kind == "new"}
    assert {message_id for kind, message_id in planned if kind == "repeat"} <= new


def test_a_lost_a_double_or_a_forged_message_fails_it() -> None:
    found = {
        "missing": 0,
        "accepted_more_than_once": 0,
        "forgeries_accepted": 0,
        "flow_runs": 9,
        "unique": 9,
    }
    assert good(found)
    for name in found:
        assert not good({**found, name: found[name] + 1})
