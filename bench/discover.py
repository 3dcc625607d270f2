"""Are the tasks found that the traffic is made of, do they stay, and what does it cost? Prints JSON.

Labelled traffic of ten kinds and eight other ones held out (``support/agent_mixes``), none of it tagged,
goes through ingest and discovery as at night. ``adjusted_rand_index`` compares the tasks with the labels
(calls of no task are one group, and so are those labelled ``other``); ``kept`` is the share of the first
night's calls, and of its tasks, that have the same id after a second night with as much new traffic again.
The peer is k-means over the same embeddings, told the number of kinds. ``growing`` are processor seconds
and peak memory of grouping alone at growing numbers of calls, each in a process of its own.

    python bench/discover.py [--quick] [--json FILE] [--calls 4000] [--sizes 5000,20000,50000]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,200 calls a night, one size")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--calls", type=int, help="of one night")
    parser.add_argument("--sizes", help="calls, by commas, growing")
    parser.add_argument("--grouping", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grouping:
        print(json.dumps(grouping(options.grouping)))
        return
    calls = options.calls or (1200 if options.quick else 4000)
    sizes = options.sizes or ("2000" if options.quick else "5000,20000,50000")
    found: dict[str, Any] = {
        "first": two_nights(FIRST, calls),
        "held_out": two_nights(HELD_OUT, calls),
        "growing": [],
    }
    for size in sizes.split(","):
        done = subprocess.run(
            [sys.executable, __file__, "--grouping", size],
            check=True,
            capture_output=True,
            text=True,
        )
        found["growing"].append(json.loads(done.stdout))
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
