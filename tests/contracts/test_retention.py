"""Collecting garbage, on every database: what is named stays."""

from __future__ import annotations

from datetime import timedelta

import pytest

from infra.database.garbage import find_mark, reserve
from infra.objects.store import ObjectStore
from serving.registry.errors import IllegalState, RegistryError, RolloutRefused
from serving.registry.registry import Registry
from serving.registry.retention.collecting import collect
from tests.contracts.registry_steps import BY
from tests.serving.registry.retention.shelves import (
    AT_ANY_TIME,
    AT_ONCE,
    DAY,
    GRACE,
    LATER,
    outcomes,
    put_files,
    require_sound,
    shelve,
    whole,
)
from tests.serving.registry.world import NOW, digest


def test_what_is_named_by_nothing_goes_and_its_row_and_events_stay(
    registry: Registry, store: ObjectStore
) -> None:
    old, champion, _, newest = (shelve(registry, store, "mail", n) for n in range(4))
    registry.set_route("mail", 0, None, champion=champion.name, now=NOW, **BY)
    done = outcomes(collect(registry.database, store, AT_ONCE, LATER))
    assert done[old.name] == "removed"
    assert (done[champion.name], done[newest.name]) == ("kept", "kept")
    assert done[champion.dataset_digest] == "kept"
    assert not list(store.list(f"{old.location}/")) and not list(store.list(f"reports/{old.name}/"))
    assert whole(store, champion.location) and whole(store, newest.location)
    assert registry.adapter(old.name).state == "retired"
    assert registry.lineage(old.name).source_objects == ("logs/v1/0",)
    whats = [event.what for event in registry.events(old.name)]
    assert whats == ["adapter.removed", "adapter.retired", "adapter.registered"]
    # Its data set goes with it, one look later; then there is nothing left to do.
    second = outcomes(collect(registry.database, store, AT_ONCE, LATER))
    assert second[old.dataset_digest] == "removed"
    assert not list(store.list(f"reports/base/{old.dataset_digest[:16]}-"))
    for made in ("labels", "judge"):
        assert not list(store.list(f"reports/{made}/{old.dataset_digest}/"))
    assert "removed" not in outcomes(collect(registry.database, store, AT_ONCE, LATER)).values()
    require_sound(registry, store)


def test_a_dry_run_tells_and_changes_nothing(registry: Registry, store: ObjectStore) -> None:
    old, newest = (shelve(registry, store, "mail", n) for n in range(2))
    before = [item.key for item in store.list()]
    done = outcomes(collect(registry.database, store, AT_ONCE, LATER, dry_run=True))
    assert (done[old.name], done[newest.name]) == ("would go", "kept")
    assert [item.key for item in store.list()] == before
    assert registry.adapter(old.name) == old
    with registry.database.read() as connection:
        assert find_mark(connection, old.location) is None


def test_it_is_marked_first_and_goes_after_the_grace_time(
    registry: Registry, store: ObjectStore
) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))
    told = [
        outcomes(collect(registry.database, store, GRACE, LATER + wait))[old.name]
        for wait in (0 * DAY, DAY / 2, DAY)
    ]
    assert told == ["marked", "waiting", "removed"]


def test_who_is_wanted_again_within_the_grace_time_loses_its_mark(
    registry: Registry, store: ObjectStore
) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))
    collect(registry.database, store, GRACE, LATER)
    registry.open_rollout("mail", old.name, AT_ANY_TIME, now=LATER, **BY)
    assert outcomes(collect(registry.database, store, GRACE, LATER + DAY))[old.name] == "kept"
    with registry.database.read() as connection:
        assert find_mark(connection, old.location) is None
    require_sound(registry, store)


def test_a_removed_adapter_never_answers_again(registry: Registry, store: ObjectStore) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))
    collect(registry.database, store, AT_ONCE, LATER)
    with pytest.raises(RolloutRefused, match="retired"):
        registry.open_rollout("mail", old.name, AT_ANY_TIME, **BY)
    with pytest.raises(IllegalState, match="cleared away"):
        registry.set_adapter_state(old.name, "registered", **BY)
    with pytest.raises(RegistryError, match="retired"):
        registry.set_route("mail", 0, None, champion=old.name, **BY)
    # Registering it again is no error, and does not bring it back.
    same = {**vars(old)}
    del same["state"], same["created"]
    assert registry.register_adapter(**same).state == "retired"


def test_a_rejected_adapter_stays_rejected_when_its_files_go(
    registry: Registry, store: ObjectStore
) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))
    registry.set_adapter_state(old.name, "rejected", **BY)
    assert outcomes(collect(registry.database, store, AT_ONCE, LATER))[old.name] == "removed"
    assert registry.adapter(old.name).state == "rejected"
    with pytest.raises(RolloutRefused, match="never retried"):
        registry.open_rollout("mail", old.name, AT_ANY_TIME, **BY)


def test_leftovers_of_a_crashed_night_go_unless_the_night_comes_back_for_them(
    registry: Registry, store: ObjectStore
) -> None:
    left, wanted = (f"adapters/mail/{digest(name)}" for name in ("left", "wanted"))
    put_files(store, left, wanted)
    store.put("adapters/notes.txt", b"not ours to judge")
    first = outcomes(collect(registry.database, store, AT_ONCE, LATER))
    assert (first[left], first[wanted]) == ("marked", "marked")
    with registry.database.begin() as connection:
        reserve(connection, wanted, LATER)
    again = outcomes(collect(registry.database, store, AT_ONCE, LATER + timedelta(hours=1)))
    assert (again[left], again[wanted]) == ("removed", "marked")
    assert whole(store, wanted) and not list(store.list(left))
    assert store.get("adapters/notes.txt")


def test_an_orphan_that_is_registered_while_it_is_looked_at_stays(
    registry: Registry, store: ObjectStore
) -> None:
    weights = digest("weights mail 5")
    put_files(store, f"adapters/mail/{weights}")
    collect(registry.database, store, AT_ONCE, LATER)

    def register(step: str) -> None:
        if step.startswith("condemn adapters"):
            shelve(registry, store, "mail", 5)

    collect(registry.database, store, AT_ONCE, LATER + DAY, on_step=register)
    require_sound(registry, store)
    assert registry.adapters()[0].state == "registered"
