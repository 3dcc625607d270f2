"""A data set version on disk: Parquet per split and a manifest, named by digest, verified on read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from infra.objects.store import ObjectExists, ObjectMissing, ObjectStore
from trainers.data_sets.labels import Example
from trainers.data_sets.splits import SPLITS, SplitName

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


class DatasetCorrupt(Exception):
    """A file is missing or is not the one that was frozen; the message says which."""


@dataclass(frozen=True)
class DatasetVersion:
    digest: str
    """sha256 of the content: examples with their split and weight, format, kind of answer."""
    task_id: str
    location: str
    """Key prefix without a closing slash: ``datasets/<task>/<digest>``."""
    manifest: Mapping[str, Any]


def location_of(task_id: str, digest: str) -> str:
    return f"datasets/{task_id}/{digest}"


def content_digest(
    splits: Mapping[SplitName, Sequence[Example]], properties: Mapping[str, Any]
) -> str:
    """The version's digest. Independent of file formats, so a library's new release changes nothing."""
    digest = hashlib.sha256(json.dumps(properties, sort_keys=True).encode())
    for name in SPLITS:
        digest.update(f"\n{name}\n".encode())
        for example in splits[name]:
            row = {**_row(example), "time": example.time.astimezone(UTC).isoformat()}
            line = json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write_version(
    store: ObjectStore,
    task_id: str,
    digest: str,
    splits: Mapping[SplitName, Sequence[Example]],
    manifest: Mapping[str, Any],
) -> DatasetVersion:
    """Store the files, then the manifest, which makes them a version.

    The same again returns the version that is there; one that was damaged is written anew.
    """
    location = location_of(task_id, digest)
    try:
        found = find_dataset(store, location)
        for name in SPLITS:
            split_bytes(store, found, name)
        return found
    except ObjectMissing:
        write_manifest = store.create
    except DatasetCorrupt:
        write_manifest = store.put
    files = {}
    for name in SPLITS:
        data = _parquet(splits[name])
        store.put(f"{location}/{name}.parquet", data)
        files[f"{name}.parquet"] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "rows": len(splits[name]),
        }
    whole = {**manifest, "manifest_version": MANIFEST_VERSION, "digest": digest, "files": files}
    text = json.dumps(whole, sort_keys=True, ensure_ascii=False, indent=1)
    try:
        write_manifest(f"{location}/{MANIFEST}", text.encode())
    except ObjectExists:
        return find_dataset(store, location)
    return DatasetVersion(digest, task_id, location, whole)


def find_dataset(store: ObjectStore, location: str) -> DatasetVersion:
    """The version at a location.

    Raises:
        ObjectMissing: there is no manifest, so no version.
        DatasetCorrupt: the manifest is not one, or belongs elsewhere.
    """
    try:
        manifest = json.loads(store.get(f"{location}/{MANIFEST}"))
        version = DatasetVersion(manifest["digest"], manifest["task_id"], location, manifest)
    except (ValueError, KeyError, TypeError):
        raise DatasetCorrupt(
            f"{location}/{MANIFEST} is no data set manifest: freeze it again"
        ) from None
    if location_of(version.task_id, version.digest) != location:
        raise DatasetCorrupt(f"{location}/{MANIFEST} belongs to another data set: freeze it again")
    return version


def read_split(store: ObjectStore, version: DatasetVersion, name: str) -> list[Example]:
    """The examples of one split, oldest first.

    Raises:
        DatasetCorrupt: the file is missing or its sha256 is not the manifest's.
        KeyError: no split of that name.
    """
    data = split_bytes(store, version, name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    return [
        Example(
            **{
                **row,
                "time": row["time"].astimezone(UTC),
                "request": json.loads(row["request"]),
                "answer": json.loads(row["answer"]),
            }
        )
        for row in table.to_pylist()
    ]


def split_bytes(store: ObjectStore, version: DatasetVersion, name: str) -> bytes:
    """One split's Parquet file. Raises DatasetCorrupt, KeyError."""
    entry = version.manifest["files"][f"{name}.parquet"]
    key = f"{version.location}/{name}.parquet"
    try:
        data = store.get(key)
    except ObjectMissing:
        raise DatasetCorrupt(f"{key} is missing: freeze the task again") from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DatasetCorrupt(
            f"{key} has another sha256 than when it was frozen: freeze the task again"
        )
    return data


def _row(example: Example) -> dict[str, Any]:
    return {
        "call_id": example.call_id,
        "session": example.session,
        "time": example.time,
        "request": json.dumps(example.request, sort_keys=True, ensure_ascii=False),
        "answer": json.dumps(example.answer, sort_keys=True, ensure_ascii=False),
        "weight": round(example.weight, 9),
        "source": example.source,
        "signature": example.signature,
    }


def _parquet(examples: Sequence[Example]) -> bytes:
    import pyarrow as pa

    from trainers.ingest.sinks import parquet_bytes

    types = {
        "call_id": pa.string(),
        "session": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),
        "request": pa.large_string(),
        "answer": pa.large_string(),
        "weight": pa.float64(),
        "source": pa.string(),
        "signature": pa.string(),
    }
    rows = [_row(example) for example in examples]
    return parquet_bytes(
        pa.table(
            {name: pa.array([row[name] for row in rows], type=kind) for name, kind in types.items()}
        )
    )
