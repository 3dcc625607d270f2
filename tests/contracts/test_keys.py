"""Limits and ends of API keys, on every database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.calls.record import utc_now
from infra.database.events import list_events
from infra.database.open import Database
from serving.gateway.routes import KeyRoute
from serving.gateway.snapshot_rows import SnapshotReader
from serving.registry import keys
from serving.registry.errors import UnknownKey

SOON = utc_now().replace(microsecond=0) + timedelta(hours=1)


def test_a_key_is_made_with_its_limits_and_gateways_read_them(each_database: Database) -> None:
    plaintext = keys.create_key(
        each_database, "acme", "operate", "ops", requests_per_minute=60, expires=SOON
    )
    kept = keys.find_key(each_database, plaintext)
    assert kept is not None
    assert (kept.requests_per_minute, kept.tokens_per_minute, kept.expires) == (60, None, SOON)
    reader = SnapshotReader(each_database)
    try:
        first = reader.read()
        assert first is not None
        assert first.keys == {kept.hash: KeyRoute("acme", "operate", 60, None, SOON)}
        assert reader.read() is None
        keys.limit_key(each_database, kept.id, {"tokens_per_minute": 1000})
        second = reader.read()
        assert second is not None and not second.says(first)
        assert second.keys[kept.hash].tokens_per_minute == 1000
        keys.revoke_key(each_database, kept.id)
        third = reader.read()
        assert third is not None and third.keys == {}
    finally:
        reader.close()


def test_limits_change_and_go_and_the_events_tell(each_database: Database) -> None:
    plaintext = keys.create_key(each_database, "acme", "call", "", requests_per_minute=5)
    kept = keys.find_key(each_database, plaintext)
    assert kept is not None
    changed = keys.limit_key(
        each_database, kept.id, {"requests_per_minute": None, "expires": SOON}, actor="ann"
    )
    assert (changed.requests_per_minute, changed.expires) == (None, SOON)
    keys.limit_key(each_database, kept.id, {"requests_per_minute": None})  # nothing new: no event
    with each_database.read() as connection:
        events = list_events(connection, what="key.limited")
    assert len(events) == 1
    assert events[0].actor == "ann"
    assert events[0].previous == {"requests_per_minute": 5, "expires": None}
    assert events[0].current == {"requests_per_minute": None, "expires": SOON.isoformat()}


def test_a_key_that_is_over_is_not_found(each_database: Database) -> None:
    past = utc_now() - timedelta(hours=2)
    plaintext = keys.create_key(
        each_database, "acme", "call", "", expires=past + timedelta(hours=1), now=past
    )
    assert keys.find_key(each_database, plaintext) is None


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"requests_per_minute": 0}, "from 1"),
        ({"tokens_per_minute": -5}, "from 1"),
        ({"requests_per_minute": 10**12}, "from 1"),
        ({"expires": datetime(2020, 1, 1, tzinfo=UTC)}, "future"),
        ({"expires": datetime(2999, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
def test_a_limit_that_is_none_is_refused(
    each_database: Database, limits: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        keys.create_key(each_database, "acme", "call", "", **limits)
    assert keys.list_keys(each_database) == []
    plaintext = keys.create_key(each_database, "acme", "call", "")
    kept = keys.find_key(each_database, plaintext)
    assert kept is not None
    with pytest.raises(ValueError, match=said):
        keys.limit_key(each_database, kept.id, limits)
    with pytest.raises(UnknownKey):
        keys.limit_key(each_database, "0" * 12, {"requests_per_minute": 3})
    assert keys.list_keys(each_database) == [kept]
