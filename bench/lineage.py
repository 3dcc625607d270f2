"""What it costs to trace a log object forwards and an answer backwards. Prints JSON.

Forwards: from a log object to the adapters that learned from it, by the table of sources; beside it, in the
same run, the way without one: every manifest read and searched. Backwards: from a call id to its record
among an hour's log objects of several gateways; beside it a scan of the hour up to the hit. Processor
time of this process, median over the questions; the database is SQLite, the store a directory.

    python bench/lineage.py [--objects 100000] [--hour 1800] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import insert, select

from infra.calls.codec import LOG_PREFIX, encode_lines, log_key, parse_line, read_lines
from infra.calls.finding import find_call
from infra.calls.record import AnsweredBy, CallRecord
from infra.database.open import Database
from infra.database.sources import sources_in
from infra.database.tables import dataset_versions, tasks
from infra.objects.directory import DirectoryStore
from infra.objects.store import ObjectInfo
from serving.registry.registry import Registry

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
SHARE = 1000
"""Log objects behind one data set."""
WRITERS = 2
CALLS_PER_OBJECT = 20
QUESTIONS = 25


class Counting(DirectoryStore):
    """A directory that counts what is opened."""

    opened = 0

    def open(self, key: str) -> Any:
        self.opened += 1
        return super().open(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        # A directory reads each file for its etag; a bucket knows them.
        before = self.opened
        found = [*super().list(prefix, after)]
        self.opened = before
        return iter(found)


def forwards(folder: Path, objects: int, dice: random.Random) -> dict[str, Any]:
    database = Database(f"sqlite:///{folder}/ns.db")
    database.upgrade()
    registry = Registry(database)
    with database.begin() as connection:
        connection.execute(insert(tasks).values(**_task()))
    keys = [log_key(START + timedelta(seconds=2 * n), "gateway", n) for n in range(objects)]
    for number, start in enumerate(range(0, objects, SHARE)):
        digest = f"{number:064x}"
        registry.record_dataset(
            digest=digest,
            task_id="mail",
            location=f"datasets/mail/{digest}",
            manifest={"parents": {"log_objects": keys[start : start + SHARE]}},
        )
        registry.register_adapter(
            name=f"mail@{digest[-16:]}",
            task_id="mail",
            digest=digest[-16:] + digest[:48],
            dataset_digest=digest,
            spec_digest=digest,
            location=f"adapters/mail/{digest}",
            manifest={},
            threshold=None,
        )
    asked = dice.sample(keys, QUESTIONS)
    truth = {key: [f"mail@{keys.index(key) // SHARE:016x}"] for key in asked}

    def by_table(key: str) -> list[str]:
        return [adapter.name for adapter in registry.object_lineage(key).adapters]

    def by_manifests(key: str) -> list[str]:
        with database.read() as connection:
            rows = connection.execute(
                select(dataset_versions.c.digest, dataset_versions.c.manifest)
            ).all()
        found = {row.digest for row in rows if key in sources_in(row.manifest)}
        return [one.name for one in registry.adapters() if one.dataset_digest in found]

    few = asked[: max(3, QUESTIONS // 5)]
    result = {
        "objects": objects,
        "table_ms": _median_ms(by_table, asked, truth),
        "manifests_ms": _median_ms(by_manifests, few, truth),
    }
    database.close()
    return {**result, "times_faster": result["manifests_ms"] / result["table_ms"]}


def backwards(folder: Path, hour: int, dice: random.Random) -> dict[str, Any]:
    store = Counting(folder / "objects")
    where: dict[str, str] = {}
    step = timedelta(seconds=3600 / hour)
    for number in range(hour):
        for writer in range(WRITERS):
            key = log_key(START + number * step, f"gateway{writer}", number)
            records = [
                _call(START + number * step + step * n / CALLS_PER_OBJECT, dice)
                for n in range(CALLS_PER_OBJECT)
            ]
            store.create(key, encode_lines(records))
            where |= {record.id: key for record in records}
    asked = dice.sample(list(where), QUESTIONS)

    def by_id(call: str) -> str:
        return find_call(store, call).object_key

    def by_scan(call: str) -> str:
        return next(key for key, found in _scanned(store) if found == call)

    result: dict[str, Any] = {"objects_in_the_hour": hour * WRITERS}
    for name, ask, some in (("id", by_id, asked), ("scan", by_scan, asked[:5])):
        store.opened = 0
        result[f"{name}_ms"] = _median_ms(ask, some, where)
        result[f"{name}_opened"] = store.opened / len(some)
    return {**result, "times_fewer_opened": result["scan_opened"] / result["id_opened"]}


def _scanned(store: DirectoryStore) -> Iterator[tuple[str, str]]:
    for item in store.list(f"{LOG_PREFIX}dt={START:%Y-%m-%d}/hh={START:%H}/"):
        with store.open(item.key) as stream:
            for _, line in read_lines(stream):
                assert isinstance(line, bytes)
                yield item.key, parse_line(line).id


def _median_ms(ask: Callable[[str], Any], asked: list[str], truth: dict[str, Any]) -> float:
    times = []
    for question in asked:
        began = time.process_time()
        answer = ask(question)
        times.append(1000 * (time.process_time() - began))
        if answer != truth[question]:
            raise SystemExit(f"wrong answer for {question}: {answer}, not {truth[question]}")
    return statistics.median(times)


def _call(moment: datetime, dice: random.Random) -> CallRecord:
    bits = (int(moment.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | dice.getrandbits(61)
    return CallRecord(
        id=str(UUID(int=bits)),
        time=moment,
        session="s",
        request={"messages": [{"role": "user", "content": f"invoice {dice.random()}"}]},
        response={},
        answered_by=AnsweredBy(model="small"),
        latency_seconds=dice.expovariate(1.0),
    )


def _task() -> dict[str, Any]:
    return {
        "id": "mail",
        "name": "mail",
        "state": "candidate",
        "policy": "specialize",
        "tag": None,
        "signature": "s",
        "centroid": [1.0],
        "radius": 0.5,
        "size": 1,
        "details": {},
        "version": 1,
        "created": START,
        "updated": START,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--hour", type=int, default=1800, help="log objects per gateway and hour")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    given = parser.parse_args(arguments)
    scale = 10 if given.quick else 1
    dice = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        found = {
            "object_to_adapters": forwards(Path(name), given.objects // scale, dice),
            "call_to_record": backwards(Path(name), given.hour // scale, dice),
        }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
