"""Adapters and data sets with real objects behind them; and a collector that kills its own process."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from infra.database.garbage import find_mark
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from infra.objects.store import ObjectStore
from infra.settings.operating import Retention
from serving.registry.records import Adapter
from serving.registry.registry import Registry
from serving.registry.retention.collecting import collect
from serving.rollout.policy import RolloutPolicy
from tests.serving.registry.world import NOW, digest

LATER = NOW + timedelta(days=400)
DAY = timedelta(days=1)
AT_ANY_TIME = RolloutPolicy(cooldown_seconds=0)
AT_ONCE = Retention(
    adapter_seconds=0,
    adapters_per_task=1,
    past_champions=1,
    dataset_seconds=0,
    datasets_per_task=1,
    grace_seconds=0,
)
GRACE = AT_ONCE.model_copy(update={"grace_seconds": 86400})


def outcomes(done) -> dict[str, str]:
    return {entry.what: entry.outcome for entry in done}


def shelve(registry: Registry, store: ObjectStore, task: str, number: int) -> Adapter:
    """A passed adapter with a data set of its own, and the objects of both."""
    now = NOW + timedelta(minutes=number)
    data = digest(f"data {task} {number}")
    weights = digest(f"weights {task} {number}")
    put_files(store, f"datasets/{task}/{data}", f"adapters/{task}/{weights}")
    store.put(f"reports/{task}@{weights[:16]}/judgement.json", b"{}")
    store.put(f"reports/base/{data[:16]}-base-10.json", b"{}")
    store.put(f"reports/labels/{data}/prompt.json", b"{}")
    store.put(f"reports/judge/{data}/question.json", b"{}")
    registry.record_dataset(
        digest=data,
        task_id=task,
        location=f"datasets/{task}/{data}",
        manifest={"parents": {"log_objects": [f"logs/v1/{number}"]}},
        now=now,
    )
    adapter = registry.register_adapter(
        name=f"{task}@{weights[:16]}",
        task_id=task,
        digest=weights,
        dataset_digest=data,
        spec_digest=digest("spec"),
        location=f"adapters/{task}/{weights}",
        manifest={},
        threshold=None,
        now=now,
    )
    registry.record_scorecard(
        digest=digest(f"card {weights}"),
        adapter=adapter.name,
        dataset_digest=data,
        body={},
        gate={"verdict": "pass"},
        now=now,
    )
    return adapter


def put_files(store: ObjectStore, *locations: str) -> None:
    for location in locations:
        for name in ("manifest.json", "part.bin"):
            store.put(f"{location}/{name}", name.encode())


def whole(store: ObjectStore, location: str) -> bool:
    """All there. Raises AssertionError when it is neither that nor without a manifest."""
    names = {item.key.rpartition("/")[2] for item in store.list(f"{location}/")}
    assert names in ({"manifest.json", "part.bin"}, {"part.bin"}, set())
    return "manifest.json" in names


def require_sound(registry: Registry, store: ObjectStore) -> None:
    """Whoever may answer is whole, with its data; who is not whole may never answer again."""
    for adapter in registry.adapters():
        if adapter.state == "registered":
            assert whole(store, adapter.location), adapter.name
            assert whole(store, registry.dataset(adapter.dataset_digest).location), adapter.name
        elif not whole(store, adapter.location):
            with registry.database.read() as connection:
                mark = find_mark(connection, adapter.location)
            assert mark is not None
            assert mark.state in ("condemned", "removed")


def main(url: str, folder: str, step: int) -> None:
    """Collect, and be killed before the effect of that number."""
    count = 0

    def on_step(_: str) -> None:
        nonlocal count
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    collect(Database(url), DirectoryStore(Path(folder)), AT_ONCE, LATER, on_step=on_step)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
