"""What taking calls in costs, and whether that stays so: processor time and memory at growing sizes.

Calls are made from the demo's real requests and answers (``support/call_logs``), 5,000 in an object, and
each size is taken in by a process of its own: read, checked for personal data, features, copies, Parquet.
``tenths`` are the processor seconds of each tenth of the largest size: a cost that grew with what is
there already would show in them. ``one_object`` takes in one object of many calls. The floor beside us
parses the same lines and writes them to Parquet, without any of that.

    python bench/ingest.py [--quick] [--json FILE] [--sizes 100000,1000000]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.call_logs import write_logs
from infra.calls.codec import LOG_PREFIX
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from infra.settings.model import Settings

PER_OBJECT = 5000
SIZES, QUICK_SIZES = (100_000, 1_000_000), (2000, 10_000)
ONE_OBJECT, QUICK_ONE_OBJECT = 200_000, 5000


def take_in(folder: Path, calls: int) -> dict[str, Any]:
    """In a process of its own: the figures of one size."""
    from trainers.ingest.ingest import ingest

    database = Database(f"sqlite:///{folder / 'night.db'}")
    database.upgrade()
    store = DirectoryStore(folder / "objects")
    ingest(store, database, Settings(), holder="warm")  # nothing yet: imports and tables
    (folder / "ready").rename(folder / "objects" / LOG_PREFIX.rstrip("/"))
    objects = sum(1 for _ in store.list(LOG_PREFIX))
    marks: list[float] = []
    rss = [peak_mib()]

    def progress(_: str) -> None:
        marks.append(time.process_time())
        if len(marks) == max(1, objects // 10):
            rss.append(peak_mib())

    begun, wall = time.process_time(), time.perf_counter()
    report = ingest(store, database, Settings(), holder="bench", progress=progress)
    cpu, wall = time.process_time() - begun, time.perf_counter() - wall
    assert report.calls == calls and report.lost == 0, report
    edges = [begun, *(marks[len(marks) * k // 10 - 1] for k in range(1, 11) if len(marks) >= 10)]
    return {
        "calls": calls,
        "objects": objects,
        "records_per_core_second": round(calls / cpu),
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
        "tenths": [round(b - a, 2) for a, b in pairwise(edges)],
        "peak_mib": peak_mib(),
        "peak_mib_before": rss[0],
        "peak_mib_after_a_tenth": rss[-1],
        "duplicates": report.duplicates,
    }


def floor(folder: Path, calls: int) -> dict[str, Any]:
    """Lines parsed by orjson, request and response written to Parquet as text, and nothing else."""
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    store = DirectoryStore(folder / "objects")
    (folder / "ready").rename(folder / "objects" / LOG_PREFIX.rstrip("/"))
    begun = time.process_time()
    for item in store.list(LOG_PREFIX):
        stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(store.get(item.key)))
        rows = [orjson.loads(line) for line in stream.read().splitlines()]
        table = pa.table(
            {
                "id": [row["id"] for row in rows],
                "session": [row["session"] for row in rows],
                "request": [orjson.dumps(row["request"]) for row in rows],
                "response": [orjson.dumps(row["response"]) for row in rows],
            }
        )
        pq.write_table(table, io.BytesIO(), compression="zstd")
    cpu = time.process_time() - begun
    return {"records_per_core_second": round(calls / cpu), "peak_mib": peak_mib()}


def peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_a_process(mode: str, calls: int, per_object: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ingest-") as name:
        folder = Path(name)
        (folder / "objects" / "logs").mkdir(parents=True)
        done: dict[str, Any] = {}
        for what in ("make", mode):
            command = [sys.executable, __file__, "--in", name, "--mode", what]
            command += ["--calls", str(calls), "--per-object", str(per_object)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            done |= json.loads(out)
        return done


def one_mode(mode: str, folder: Path, calls: int, per_object: int) -> dict[str, Any]:
    if mode == "make":
        store = DirectoryStore(folder / "made")
        written = write_logs(store, calls, per_object)
        (folder / "made" / LOG_PREFIX.rstrip("/")).rename(folder / "ready")
        return {"object_bytes": written}
    return take_in(folder, calls) if mode == "ours" else floor(folder, calls)


def measure(sizes: tuple[int, ...], one_object: int) -> dict[str, Any]:
    found = []
    for size in sizes:
        found.append(in_a_process("ours", size, PER_OBJECT))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    small, large = found[0], found[-1]
    cost = [size["cpu_seconds"] / size["calls"] for size in (small, large)]
    tenths = large["tenths"]
    return {
        "sizes": found,
        "cost_per_call_of_the_largest_over_the_smallest": round(cost[1] / cost[0], 3),
        "last_half_over_first_half": round(sum(tenths[5:]) / sum(tenths[:5]), 3)
        if tenths
        else None,
        "peak_of_the_largest_over_the_smallest": round(large["peak_mib"] / small["peak_mib"], 3),
        "one_object": in_a_process("ours", one_object, one_object),
        "floor": in_a_process("floor", min(sizes), PER_OBJECT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 and 10,000 calls")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sizes", help="calls, by commas, growing")
    parser.add_argument("--one-object", type=int)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("make", "ours", "floor"), help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--per-object", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        done = one_mode(options.mode, options.folder, options.calls, options.per_object)
        print(json.dumps(done))
        return
    sizes = QUICK_SIZES if options.quick else SIZES
    if options.sizes:
        sizes = tuple(int(size) for size in options.sizes.split(","))
    single = options.one_object or (QUICK_ONE_OBJECT if options.quick else ONE_OBJECT)
    text = json.dumps(measure(sizes, single), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
