"""Collecting and expiring in a bucket as in a directory."""
# ruff: noqa: F811 - the stores are those of the object store's own suite

from __future__ import annotations

from datetime import timedelta

from infra.calls.codec import encode_lines, log_key
from infra.database.open import Database
from infra.objects.store import ObjectStore
from serving.registry.registry import Registry
from serving.registry.retention.collecting import collect
from tests.contracts.test_object_store import each_store, storage  # noqa: F401
from tests.serving.registry.retention.shelves import (
    AT_ONCE,
    LATER,
    put_files,
    require_sound,
    shelve,
    whole,
)
from tests.serving.registry.world import NOW, add_task, digest
from tests.trainers.recorded import SETTINGS, call
from trainers.ingest.expiry import expire_logs
from trainers.ingest.ingest import ingest


def test_adapters_data_sets_and_leftovers_go_from_every_store(
    database: Database, each_store: ObjectStore
) -> None:
    registry = Registry(database)
    add_task(database, "mail")
    old, newest = (shelve(registry, each_store, "mail", n) for n in range(2))
    left = f"adapters/mail/{digest('left')}"
    put_files(each_store, left)
    for wait in (0, 1, 2):
        collect(database, each_store, AT_ONCE, LATER + timedelta(hours=wait))
        require_sound(registry, each_store)
    keys = {item.key for item in each_store.list()}
    for gone in (old.location, left, f"datasets/mail/{old.dataset_digest}", f"reports/{old.name}"):
        assert not [key for key in keys if key.startswith(f"{gone}/")]
    assert whole(each_store, newest.location)
    assert whole(each_store, f"datasets/mail/{newest.dataset_digest}")


def test_old_days_go_from_every_store_while_it_is_listed(
    database: Database, each_store: ObjectStore
) -> None:
    for number in range(30):
        moment = NOW + timedelta(hours=6 * number)
        record = call(number, time=moment)
        each_store.create(log_key(moment, "w", number), encode_lines([record]))
    ingest(each_store, database, SETTINGS, holder="test")
    first_kept = (NOW + timedelta(days=4)).date()
    done = expire_logs(each_store, database, first_kept, "old")
    left = [item.key for item in each_store.list("logs/")]
    assert done.removed == 30 - len(left)
    assert 0 < len(left) < 30
    assert min(left) >= f"logs/v1/dt={first_kept}"
    assert len(list(each_store.list("calls/"))) == len(left)
