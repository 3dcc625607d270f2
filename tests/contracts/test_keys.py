"""API keys, their limits and their ends, on every database."""

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
from serving.registry.errors import (
    UnknownKey,
)
from serving.registry.registry import Registry
from tests.contracts.registry_steps import whats
from tests.serving.registry.world import NOW

SOON = utc_now().replace(microsecond=0) + timedelta(hours=1)


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
