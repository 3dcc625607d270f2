"""Lineage both ways, on every database, with answers found in real log objects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text

from infra.calls.codec import encode_lines, log_key
from infra.calls.finding import CallNotFound, find_call, time_of_id
from infra.calls.record import AnsweredBy, CallRecord, FeedbackRecord, new_id
from infra.database.open import Database
from infra.database.tables import dataset_sources, dataset_versions
from infra.objects.store import ObjectStore
from serving.registry.errors import Unknown, UnknownDataset, UnknownObject
from serving.registry.lineage import kind_of
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.serving.registry.world import NOW, add_adapter, add_task, digest


def id_at(moment: datetime, number: int) -> str:
    """A UUID of version 7 made at this moment."""
    milliseconds = int(moment.timestamp() * 1000)
    return str(UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | number))


def call_at(moment: datetime, number: int = 0, adapter: str | None = None, **more) -> CallRecord:
    return CallRecord(
        id=id_at(moment, number),
        time=moment,
        session="s",
        request={"messages": [{"role": "user", "content": "hi"}]},
        response={},
        answered_by=AnsweredBy(model="small", adapter=adapter, **more),
        latency_seconds=1.0,
    )


class Counting:
    """A store that counts what is opened."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.opened: list[str] = []

    def open(self, key: str):
        self.opened.append(key)
        return self._store.open(key)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


# From an answer back to the log objects


def test_from_an_answer_to_adapter_data_and_objects(registry: Registry, store: ObjectStore) -> None:
    adapter = add_adapter(registry, "mail", 1)
    rollout = registry.open_rollout(
        "mail", adapter.name, RolloutPolicy(), actor="night", why="passed", now=NOW
    )
    told = call_at(NOW, 1, adapter.name, arm="canary", rollout=rollout.id, route_version=3)
    key = log_key(NOW, "gateway", 1)
    store.create(key, encode_lines([call_at(NOW, 0), told]))
    found = registry.answer_lineage(store, told.id)
    assert found.object_key == key
    assert (found.route_version, found.rollout_id, found.arm) == (3, rollout.id, "canary")
    assert found.rollout == rollout
    assert found.adapter is not None
    assert found.adapter.adapter == adapter
    assert found.adapter.dataset.digest == adapter.dataset_digest
    assert found.adapter.source_objects == ("logs/v1/a", "logs/v1/b")


def test_an_answer_of_the_teacher_has_no_adapter_behind_it(
    registry: Registry, store: ObjectStore
) -> None:
    told = call_at(NOW)
    store.create(log_key(NOW, "gateway", 1), encode_lines([told]))
    found = registry.answer_lineage(store, told.id.upper())
    assert (found.adapter, found.rollout, found.adapter_name) == (None, None, None)


def test_an_adapter_of_another_registry_is_named_and_not_made_up(
    registry: Registry, store: ObjectStore
) -> None:
    told = call_at(NOW, 0, "mail@0123456789abcdef", rollout="another")
    store.create(log_key(NOW, "gateway", 1), encode_lines([told]))
    found = registry.answer_lineage(store, told.id)
    assert found.adapter_name == "mail@0123456789abcdef"
    assert (found.adapter, found.rollout) == (None, None)


# Finding a call


def test_a_call_is_found_among_many_objects_by_reading_few(store: ObjectStore) -> None:
    start = datetime(2026, 5, 1, 12, tzinfo=UTC)
    for number in range(400):
        moment = start + timedelta(seconds=8 * number)
        for writer in ("one", "two"):
            record = call_at(moment, number * 2 + (writer == "two"))
            store.create(log_key(moment, writer, number), encode_lines([record]))
    counting = Counting(store)
    wanted = call_at(start + timedelta(seconds=8 * 317), 317 * 2)
    found = find_call(counting, wanted.id)  # type: ignore[arg-type]
    assert found.object_key == log_key(wanted.time, "one", 317)
    assert len(counting.opened) < 60


def test_a_slow_call_lies_behind_younger_ones_and_is_found(store: ObjectStore) -> None:
    start = datetime(2026, 5, 1, 12, tzinfo=UTC)
    slow = call_at(start, 999).model_copy(update={"latency_seconds": 240.0})
    for number in range(120):
        moment = start + timedelta(seconds=2 * number)
        store.create(log_key(start, "w", number), encode_lines([call_at(moment, number)]))
    store.create(log_key(start, "w", 120), encode_lines([slow]))
    assert find_call(store, slow.id).object_key == log_key(start, "w", 120)


@pytest.mark.parametrize("seconds", [-0.001, 0.0])
def test_a_call_made_as_the_hour_ends_is_found_on_either_side(
    store: ObjectStore, seconds: float
) -> None:
    hour = datetime(2026, 5, 1, 13, tzinfo=UTC)
    made = hour + timedelta(seconds=seconds)
    record = call_at(made).model_copy(update={"time": hour - timedelta(seconds=seconds)})
    store.create(log_key(record.time, "w", 1), encode_lines([record]))
    assert find_call(store, record.id).record.id == record.id


def test_logs_in_no_order_are_read_to_the_end_of_their_hour(store: ObjectStore) -> None:
    start = datetime(2026, 5, 1, 12, tzinfo=UTC)
    records = [call_at(start + timedelta(minutes=(7 * n) % 60), n) for n in range(60)]
    for number, record in enumerate(records):
        store.create(log_key(start, "foreign", number), encode_lines([record]))
    store.create(log_key(start, "foreign", 60), b"no zstandard data")
    for record in records:
        assert find_call(store, record.id).record.id == record.id


def test_a_feedback_on_a_call_is_not_the_call(store: ObjectStore) -> None:
    record = call_at(NOW)
    feedback = FeedbackRecord(time=NOW, call_id=record.id, score=1.0)
    store.create(log_key(NOW, "w", 1), encode_lines([feedback]))
    with pytest.raises(CallNotFound, match="not shipped yet"):
        find_call(store, record.id)
    store.create(log_key(NOW, "w", 2), encode_lines([record]))
    assert find_call(store, record.id).object_key == log_key(NOW, "w", 2)


def test_what_cannot_be_found_says_why(store: ObjectStore) -> None:
    with pytest.raises(CallNotFound, match="x-nightschool-call-id"):
        find_call(store, "4f3c2d6e-0000-4000-8000-000000000000")
    for number in range(4):
        store.create(log_key(NOW, "w", number), encode_lines([call_at(NOW, number)]))
    with pytest.raises(CallNotFound, match="give it longer"):
        find_call(store, id_at(NOW, 77), max_objects=2)
    with pytest.raises(CallNotFound, match="0 objects"):
        find_call(store, id_at(NOW, 77), within_seconds=-1)


def test_an_id_of_ours_names_its_moment() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    made = time_of_id(new_id())
    assert made is not None
    assert before <= made <= datetime.now(UTC) + timedelta(milliseconds=1)
    assert time_of_id("not an id") is None


@given(st.text(max_size=80))
def test_any_text_is_one_kind_of_thing_or_refused(what: str) -> None:
    try:
        assert kind_of(what) in ("adapter", "call", "dataset", "object")
    except Unknown as refused:
        assert "nor the key of a log object" in str(refused)


# From an object to who learned from it


def test_from_an_object_to_the_adapters_that_learned_from_it(registry: Registry) -> None:
    add_task(registry.database, "other")
    one, two = add_adapter(registry, "mail", 1), add_adapter(registry, "mail", 2)
    third = add_adapter(registry, "other", 3)
    found = registry.object_lineage("logs/v1/a")
    assert {data.task_id for data in found.datasets} == {"mail", "other"}
    assert {adapter.name for adapter in found.adapters} == {one.name, two.name, third.name}
    assert (found.state, found.ingested) == (None, None)
    with pytest.raises(UnknownObject, match="logs/v1/dt="):
        registry.object_lineage("logs/v1/never")


def test_from_a_data_set_both_ways_by_as_much_of_its_digest_as_is_unique(
    registry: Registry,
) -> None:
    adapter = add_adapter(registry, "mail", 1)
    found = registry.dataset_lineage(adapter.dataset_digest[:8])
    assert found == registry.dataset_lineage(adapter.dataset_digest)
    assert found.source_objects == ("logs/v1/a", "logs/v1/b")
    assert found.adapters == (adapter,)
    twin = adapter.dataset_digest[:8] + digest("twin")[8:]
    registry.record_dataset(
        digest=twin, task_id="mail", location=f"datasets/mail/{twin}", manifest={}
    )
    for bad in (adapter.dataset_digest[:8], digest("nobody"), "xyz", ""):
        with pytest.raises(UnknownDataset):
            registry.dataset_lineage(bad)
    assert registry.dataset_lineage(twin).source_objects == ()


def test_a_data_set_and_its_sources_are_one_transaction(registry: Registry) -> None:
    bad = {"parents": {"log_objects": ["logs/v1/a"]}, "ratio": float("nan")}
    with pytest.raises(Exception, match="JSON"):
        registry.record_dataset(
            digest=digest("x"), task_id="mail", location="datasets/mail/x", manifest=bad
        )
    with registry.database.read() as connection:
        assert connection.execute(select(dataset_sources)).all() == []


def test_an_index_serves_the_way_from_an_object(registry: Registry) -> None:
    data = digest("large")
    keys = [f"logs/v1/dt=2026-05-01/hh=00/w-{n:010d}.jsonl.zst" for n in range(12_000)]
    registry.record_dataset(
        digest=data,
        task_id="mail",
        location=f"datasets/mail/{data}",
        manifest={"parents": {"log_objects": [*reversed(keys), keys[0]]}},
    )
    assert registry.dataset_lineage(data).source_objects == tuple(keys)
    assert [d.digest for d in registry.object_lineage(keys[7777]).datasets] == [data]
    sqlite = registry.database.is_sqlite
    with registry.database.begin() as connection:
        if not sqlite:
            connection.execute(text("ANALYZE dataset_sources"))
        plan = connection.execute(
            text(
                ("EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN ")
                + "SELECT dataset_digest FROM dataset_sources WHERE object_key = 'logs/v1/a'"
            )
        ).all()
    assert "ix_dataset_sources_object_key" in str(plan)


# What the migration makes of data sets that were there before


def test_an_upgrade_fills_the_sources_from_the_manifests(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import command

    from infra.database.migrations import runner

    def to(revision: str):
        def upgrade(connection):
            config = runner._config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            return revision

        return upgrade

    with monkeypatch.context() as older:
        older.setattr(runner, "upgrade", to("0002"))
        empty_database.upgrade()
    add_task(empty_database, "mail")
    manifests = {
        "a" * 64: {"parents": {"log_objects": ["logs/v1/b", "logs/v1/a", "logs/v1/a"]}},
        "b" * 64: {"parents": {}},
        "c" * 64: {"parents": {"log_objects": "all of them"}},
        "d" * 64: {},
    }
    with empty_database.begin() as connection:
        for name, manifest in manifests.items():
            connection.execute(
                insert(dataset_versions).values(
                    digest=name, task_id="mail", location=name, manifest=manifest, created=NOW
                )
            )
    empty_database.upgrade()
    registry = Registry(empty_database)
    assert registry.dataset_lineage("a" * 64).source_objects == ("logs/v1/a", "logs/v1/b")
    assert [d.digest for d in registry.object_lineage("logs/v1/a").datasets] == ["a" * 64]
    assert all(
        not registry.dataset_lineage(name).source_objects for name in manifests if name[0] != "a"
    )
