"""Are the tasks found that the traffic is made of, do they stay, and what does it cost? Prints JSON.

Labelled traffic of ten kinds and eight other ones held out (``support/agent_mixes``), none of it tagged,
goes through ingest and discovery as at night. ``adjusted_rand_index`` compares the tasks with the labels
(calls of no task are one group, and so are those labelled ``other``); ``kept`` is the share of the first
night's calls, and of its tasks, that have the same id after a second night with as much new traffic again.
The peer is k-means over the same embeddings, told the number of kinds. ``growing`` are processor seconds
and peak memory of grouping alone at growing numbers of calls, each in a process of its own.
``--nights`` measures a whole discovery (files read, tasks written) over so many calls that were taken in,
once with the default ``discovery.max_calls`` and once with all of them; the calls are copies of 10,000 with
other ids, times, sessions and one other word in each prompt, so that no two embeddings are shared.
``--freeze`` takes in so many calls of the first mix and freezes its eight largest tasks: all of that, and
the part of it in which the tasks' calls are read back.

    python bench/discover.py [--quick] [--json FILE] [--calls 4000] [--sizes 5000,20000,50000]
                             [--nights 50000,200000,1000000] [--freeze 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.agent_mixes import FIRST, HELD_OUT, Maker, mix
from bench.support.call_logs import START
from infra.calls.codec import encode_lines, log_key
from infra.calls.record import CallRecord
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from infra.settings.model import Settings

PER_OBJECT = 2000
COPIED = 10_000
FROZEN = 8


def two_nights(kinds: dict[str, Maker], calls: int) -> dict[str, Any]:
    from trainers.discover.discover import discover
    from trainers.ingest.ingest import ingest

    settings = Settings()
    with tempfile.TemporaryDirectory(prefix="discover-") as name:
        store = DirectoryStore(Path(name) / "objects")
        database = Database(f"sqlite:///{name}/night.db")
        database.upgrade()
        labels: dict[str, str] = {}
        nights: list[dict[str, str]] = []
        for number in (0, 1):
            made = list(mix(kinds, number, calls, first=number * calls))
            labels |= {record.id: label for label, record in made}
            for begin in range(0, calls, PER_OBJECT):
                records = [record for _, record in made[begin : begin + PER_OBJECT]]
                key = log_key(records[0].time, f"night-{number}", begin)
                store.put(key, encode_lines(records))
            ingest(store, database, settings, holder="bench")
            found = discover(store, database, settings, START + timedelta(days=number))
            nights.append({call: task.id for task in found for call in task.members})
        database.close()
    before, after = nights
    stayed = sum(after.get(call) == task for call, task in before.items())
    first = [call for call in labels if call.startswith("call-0-")]
    return {
        "kinds": len(kinds) - 1,  # the rare ones belong nowhere
        "calls": calls,
        "tasks": len(set(before.values())),
        "adjusted_rand_index": index(labels, before, first),
        "second_night": index(labels, after, list(labels)),
        "kept_calls": round(stayed / max(1, len(before)), 4),
        "kept_tasks": round(
            len(set(before.values()) & set(after.values())) / max(1, len(set(before.values()))), 4
        ),
        "k_means_told_the_number": peer([r for _, r in mix(kinds, 0, calls)], labels, len(kinds)),
        "by_kind": by_kind(labels, before, first),
    }


def index(labels: dict[str, str], tasks: dict[str, str], calls: list[str]) -> float:
    from sklearn.metrics import adjusted_rand_score

    told = [labels[call] for call in calls]
    return round(float(adjusted_rand_score(told, [tasks.get(call, "") for call in calls])), 4)


def by_kind(labels: dict[str, str], tasks: dict[str, str], calls: list[str]) -> dict[str, Any]:
    found: dict[str, Counter[str]] = {}
    for call in calls:
        found.setdefault(labels[call], Counter())[tasks.get(call, "none")] += 1
    return {label: dict(counts.most_common(4)) for label, counts in sorted(found.items())}


def peer(records: list[CallRecord], labels: dict[str, str], kinds: int) -> float:
    from sklearn.cluster import KMeans

    from infra.tasks.embedding import embed, prompt_text

    vectors = embed([prompt_text(record.request) for record in records])
    found = KMeans(kinds, n_init=4, random_state=0).fit(vectors).labels_
    tasks = {record.id: str(label) for record, label in zip(records, found, strict=True)}
    return index(labels, tasks, list(tasks))


def grouping(calls: int) -> dict[str, Any]:
    """In a process of its own: processor seconds and memory of one night's grouping."""
    from trainers.discover.grouping import Row, form_groups
    from trainers.ingest.features import features

    rows = [
        Row(record.id, record.time, record.session, None, features(record))
        for _, record in mix(FIRST, 7, calls)
    ]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    form_groups(rows[:500], [], Settings().discovery)  # imports
    begun = time.process_time()
    groups = form_groups(rows, [], Settings().discovery)
    cpu = time.process_time() - begun
    return {
        "calls": calls,
        "tasks": len(groups),
        "cpu_seconds": round(cpu, 2),
        "microseconds_per_call": round(1e6 * cpu / calls),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mib_before": round(held / 1024),
    }


def make_night(folder: Path, calls: int) -> None:
    """A store and a database in which so many calls are committed."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from trainers.ingest import claims
    from trainers.ingest.ingest import ingest
    from trainers.ingest.reading import call_files
    from trainers.ingest.sinks import parquet_bytes

    store = DirectoryStore(folder / "objects")
    database = Database(f"sqlite:///{folder / 'night.db'}")
    database.upgrade()
    records = [record for _, record in mix(FIRST, 7, min(calls, COPIED))]
    key = log_key(records[0].time, "night", 0)
    store.put(key, encode_lines(records))
    ingest(store, database, Settings(), holder="bench")
    tables = [
        pq.read_table(pa.BufferReader(store.get(file.key))) for file in call_files(database, calls)
    ]
    for copy in range(1, calls // COPIED):
        files = []
        for number, table in enumerate(tables):
            for name, tail in (
                ("id", f"-{copy}"),
                ("session", f"-{copy}"),
                ("f_prompt", f" k{copy}"),
            ):
                changed = pc.binary_join_element_wise(table.column(name), tail, "")
                table = table.set_column(table.column_names.index(name), name, changed)
            later = pc.add(table.column("time"), pa.scalar(timedelta(minutes=copy)))
            table = table.set_column(table.column_names.index("time"), "time", later)
            made = f"calls/v1/copy-{copy:05d}-{number}.parquet"
            store.put(made, parquet_bytes(table))
            files.append({"key": made, "rows": table.num_rows})
        info = store.put(log_key(records[0].time + timedelta(minutes=copy), "copy", copy), b"-")
        held = claims.claim(database, info, "bench", 600, START)
        assert held is not None
        counts = {"calls": len(records), "call_files": files, "feedback_files": []}
        assert claims.commit(database, held, counts, START)
    database.close()


def whole_night(folder: Path, limit: int) -> dict[str, Any]:
    """In a process of its own: a whole discovery with this ``max_calls``."""
    from trainers.discover.discover import discover

    settings = looking_at(limit)
    before = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    begun = time.process_time()
    store = DirectoryStore(folder / "objects")
    found = discover(store, Database(f"sqlite:///{folder / 'night.db'}"), settings, START)
    return {
        "max_calls": limit,
        "tasks": len(found),
        "calls_of_a_task": sum(task.size for task in found),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mib_before": before,
    }


def make_freeze(folder: Path, calls: int) -> dict[str, Any]:
    """So many calls taken in and their tasks found."""
    from trainers.discover.discover import discover
    from trainers.ingest.ingest import ingest
    from trainers.ingest.reading import call_files

    settings = looking_at(calls)
    store = DirectoryStore(folder / "objects")
    database = Database(f"sqlite:///{folder / 'night.db'}")
    database.upgrade()
    made = (record for _, record in mix(FIRST, 7, calls))
    number = 0
    while records := list(islice(made, PER_OBJECT)):
        store.put(log_key(records[0].time, "night", number), encode_lines(records))
        number += 1
    ingest(store, database, settings, holder="bench")
    discover(store, database, settings, START)
    size = sum(store.info(file.key).size for file in call_files(database, calls))
    database.close()
    return {"calls": calls, "parquet_mib": round(size / (1 << 20), 1)}


def freeze_tasks(folder: Path, calls: int) -> dict[str, Any]:
    """In a process of its own: the eight largest tasks' calls read back, then frozen."""
    from sqlalchemy import select

    from infra.database.tables import tasks
    from trainers.data_sets.freeze import freeze
    from trainers.discover import assignments
    from trainers.ingest.reading import call_files, read_calls

    settings = looking_at(calls)
    store = DirectoryStore(folder / "objects")
    database = Database(f"sqlite:///{folder / 'night.db'}")
    with database.read() as connection:
        query = select(tasks.c.id).order_by(tasks.c.size.desc(), tasks.c.id).limit(FROZEN)
        largest = list(connection.execute(query).scalars())
    pointer = assignments.latest(database)
    assert pointer is not None
    owners = assignments.read(store, pointer)
    members = {task: {call for call, owner in owners.items() if owner == task} for task in largest}
    files = call_files(database, calls)
    sum(1 for _ in read_calls(store, files, set(list(owners)[:1])))  # imports
    before = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    begun = time.process_time()
    read = [sum(1 for _ in read_calls(store, files, ids)) for ids in members.values()]
    reading = time.process_time() - begun
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    begun = time.process_time()
    digests = [freeze(store, database, settings, task, START).digest for task in largest]
    return {
        "calls_of_each": read,
        "read_back_cpu_seconds": round(reading, 1),
        "frozen_cpu_seconds": round(time.process_time() - begun, 1),
        "peak_mib_before": before,
        "peak_mib_of_reading": peak,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "digests": [digest[:12] for digest in digests],
    }


def looking_at(calls: int) -> Settings:
    discovery = Settings().discovery.model_copy(update={"max_calls": calls})
    return Settings().model_copy(update={"discovery": discovery})


def in_a_process(*arguments: str) -> Any:
    out = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(out)


def nights(sizes: list[int]) -> list[dict[str, Any]]:
    found = []
    for calls in sizes:
        for limit in sorted({Settings().discovery.max_calls, calls}):
            with tempfile.TemporaryDirectory(prefix="discover-") as name:
                in_a_process("--in", name, "--make", str(calls))
                night = in_a_process("--in", name, "--night", str(limit))
            found.append({"calls": calls, **night})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,200 calls a night, one size")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--calls", type=int, help="of one night")
    parser.add_argument("--sizes", help="calls, by commas, growing")
    parser.add_argument("--nights", help="only whole nights over so many calls, by commas")
    parser.add_argument("--freeze", type=int, help="only data sets frozen out of so many calls")
    parser.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--grouping", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--night", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grouping:
        print(json.dumps(grouping(options.grouping)))
        return
    if options.freeze and options.folder:
        step = freeze_tasks if options.frozen else make_freeze
        print(json.dumps(step(options.folder, options.freeze)))
        return
    if options.freeze:
        with tempfile.TemporaryDirectory(prefix="freeze-") as name:
            arguments = ("--in", name, "--freeze", str(options.freeze))
            told = in_a_process(*arguments) | in_a_process(*arguments, "--frozen")
        show({"freeze": told}, options.json)
        return
    if options.make:
        print(json.dumps(make_night(options.folder, options.make)))
        return
    if options.night:
        print(json.dumps(whole_night(options.folder, options.night)))
        return
    if options.nights:
        told = {"nights": nights([int(size) for size in options.nights.split(",")])}
        show(told, options.json)
        return
    calls = options.calls or (1200 if options.quick else 4000)
    sizes = options.sizes or ("2000" if options.quick else "5000,20000,50000")
    found: dict[str, Any] = {
        "first": two_nights(FIRST, calls),
        "held_out": two_nights(HELD_OUT, calls),
        "growing": [],
    }
    for size in sizes.split(","):
        found["growing"].append(in_a_process("--grouping", size))
    show(found, options.json)


def show(found: dict[str, Any], path: Path | None) -> None:
    text = json.dumps(found, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
