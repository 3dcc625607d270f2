"""A task's calls lie together in a file, and reading them decodes no other's."""

from __future__ import annotations

import random
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.trainers.recorded import SETTINGS, START, call, home, opened, put_log, run, ticket
from trainers.data_sets.freeze import freeze
from trainers.discover.discover import discover
from trainers.ingest.features import FEATURE_COLUMNS, features, from_row
from trainers.ingest.partitions import MAX_ROWS, MIN_ROWS, partitions
from trainers.ingest.reading import call_files, read_calls, read_columns
from trainers.ingest.sinks import parquet_bytes

FEATURES = features(call())


def mixed(each: int):
    """Two untagged tasks and one tagged, of two tenants, as they arrive: call by call in turn."""
    return [
        record
        for n in range(each)
        for record in (
            home(4 * n),
            ticket(4 * n + 1),
            call(4 * n + 2, task_tag="said"),
            home(4 * n + 3, tenant="other"),
        )
    ]


def groups_of(parquet: pq.ParquetFile) -> list[list[str]]:
    return [
        parquet.read_row_group(number, ["id"]).column("id").to_pylist()
        for number in range(parquet.num_row_groups)
    ]


def test_tenants_and_tasks_have_row_groups_of_their_own(tmp_path):
    store, database = opened(tmp_path)
    records = mixed(MIN_ROWS + 5)
    put_log(store, records)
    run(store, database)
    (file,) = call_files(database, 10**6)
    found = groups_of(pq.ParquetFile(pa.BufferReader(store.get(file.key))))
    kinds = [{(r.tenant, r.task_tag, len(r.request)) for r in records if r.id in g} for g in found]
    assert [len(ids) for ids in found] == [MIN_ROWS + 5] * 4
    assert all(len(kind) == 1 for kind in kinds)
    said = {record.id: features(record) for record in records}
    rows = read_columns(store, [file], FEATURE_COLUMNS)
    assert all(from_row(row) == said[row["id"]] for row in rows)


def test_only_the_row_groups_of_the_wanted_calls_are_decoded(tmp_path):
    store, database = opened(tmp_path)
    records = mixed(MIN_ROWS)
    put_log(store, records)
    run(store, database)
    (file,) = call_files(database, 10**6)
    data = bytearray(store.get(file.key))
    parquet = pq.ParquetFile(pa.BufferReader(bytes(data)))
    wanted = {record.id for record in records if record.task_tag == "said"}
    column = parquet.schema_arrow.names.index("request")
    for number, ids in enumerate(groups_of(parquet)):
        if not wanted & set(ids):
            chunk = parquet.metadata.row_group(number).column(column)
            begin = chunk.dictionary_page_offset or chunk.data_page_offset
            data[begin : begin + chunk.total_compressed_size] = (
                b"\xff" * chunk.total_compressed_size
            )
    store.put(file.key, bytes(data))
    assert {record.id for record, _ in read_calls(store, [file], wanted)} == wanted
    with pytest.raises((pa.ArrowException, OSError)):
        list(read_calls(store, [file], {records[0].id}))


def test_files_of_an_earlier_release_give_the_same_data_set(tmp_path):
    store, database = opened(tmp_path)
    records = [record for n in range(40) for record in (home(2 * n), ticket(2 * n + 1))]
    put_log(store, records)
    run(store, database)
    tasks = discover(store, database, SETTINGS, START)
    digests = [freeze(store, database, SETTINGS, task.id, START).digest for task in tasks]
    (file,) = call_files(database, 10**6)
    table = pq.read_table(pa.BufferReader(store.get(file.key)))
    store.put(file.key, parquet_bytes(table.sort_by("time")))
    assert [freeze(store, database, SETTINGS, task.id, START).digest for task in tasks] == digests
    assert len(digests) == 2


@hypothesis_settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 1200), max_size=8), seed=st.integers(0, 9))
def test_every_row_once_in_groups_of_bounded_size(sizes, seed):
    tags = [f"task-{number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(tags)
    records = [call(number, task_tag=tag) for number, tag in enumerate(tags)]
    order, groups = partitions(records, [FEATURES] * len(records))
    assert sorted(order) == list(range(len(tags)))
    assert sum(groups) == len(tags)
    assert all(MIN_ROWS <= size <= MAX_ROWS for size in groups[:-1])
    read: defaultdict[str, int] = defaultdict(int)
    for number, size in enumerate(groups):
        rows = order[sum(groups[:number]) :][:size]
        assert rows == sorted(rows, key=lambda row: (tags[row], row)), "in order of arrival"
        for tag in {tags[row] for row in rows}:
            read[tag] += size
    assert all(read[f"task-{n}"] <= size + 2 * MAX_ROWS for n, size in enumerate(sizes))
