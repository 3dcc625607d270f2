"""A subject's examples out of the data set versions, and out of the runs that copied them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from infra.database.garbage import reserve
from infra.database.open import Database
from infra.objects.store import ObjectStore
from trainers.data_sets.freeze import described, register
from trainers.data_sets.splits import SPLITS
from trainers.data_sets.versions import (
    DatasetVersion,
    content_digest,
    location_of,
    read_split,
    write_version,
)
from trainers.forgetting.subject import Subject
from trainers.old_runs import clear_run
from trainers.run_folder import RunFolder
from trainers.run_storage import RunStorage, stored_runs

_PROPERTIES = ("task_id", "format", "kind")


def examples_of(store: ObjectStore, version: DatasetVersion, subject: Subject) -> int:
    """How many of a version's examples are the subject's, a split at a time. Raises DatasetCorrupt."""
    return sum(
        subject.has_example(example)
        for name in SPLITS
        for example in read_split(store, version, name)
    )


def version_without(
    store: ObjectStore, database: Database, version: DatasetVersion, subject: Subject, now: datetime
) -> DatasetVersion | None:
    """The version without the subject's examples, each of the others in the split that it was in.

    None: nothing is left to train on. The same again gives the same version.

    Raises DatasetCorrupt, BeingRemoved, ObjectStoreError.
    """
    splits = {
        name: [e for e in read_split(store, version, name) if not subject.has_example(e)]
        for name in SPLITS
    }
    if not splits["train"]:
        return None
    properties = {name: version.manifest[name] for name in _PROPERTIES}
    digest = content_digest(splits, properties)
    parents = {**version.manifest["parents"], "dataset": version.digest}
    manifest: dict[str, Any] = {**version.manifest, **described(splits), "parents": parents}
    with database.begin() as connection:
        reserve(connection, location_of(version.task_id, digest), now)
    made = write_version(store, version.task_id, digest, splits, manifest)
    register(database, made, now)
    return made


def clear_runs(runs: Path, store: ObjectStore, datasets: set[str]) -> int:
    """Delete what runs on these data sets keep, here and in the store, with the examples in it; how
    many are at work here and stay.
    """
    for run_id in stored_runs(store):
        stored = RunStorage(store, run_id)
        spec = stored.spec()
        if spec is not None and datasets & {spec.dataset_digest, *spec.old_datasets}:
            stored.clear()
    busy = 0
    for path in sorted(runs.glob("*/spec.json")) if runs.is_dir() else []:
        try:
            spec = RunFolder(path.parent).spec()
        except (OSError, ValueError):
            continue  # no run, or one that is just going
        if datasets & {spec.dataset_digest, *spec.old_datasets}:
            busy += not clear_run(path.parent, float("inf"), 0)
    return busy
