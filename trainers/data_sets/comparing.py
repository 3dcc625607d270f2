"""Two data set versions side by side, and one taken out for the ``datasets`` library."""

from __future__ import annotations

from pathlib import Path

from infra.files import write_atomically
from infra.objects.store import ObjectStore
from trainers.data_sets.labels import answer_key
from trainers.data_sets.splits import SPLITS
from trainers.data_sets.versions import DatasetVersion, read_split, split_bytes


def compare(store: ObjectStore, old: DatasetVersion, new: DatasetVersion) -> dict[str, list[str]]:
    """Ids of the calls that were added, removed, moved to another split, or answered otherwise.

    Raises DatasetCorrupt.
    """
    before, after = _calls(store, old), _calls(store, new)
    both = [call for call in after if call in before]
    return {
        "added": [call for call in after if call not in before],
        "removed": [call for call in before if call not in after],
        "moved": [call for call in both if before[call][0] != after[call][0]],
        "other answer": [call for call in both if before[call][1] != after[call][1]],
    }


def export_version(store: ObjectStore, version: DatasetVersion, folder: Path) -> int:
    """Write ``<split>.parquet`` for each split that has rows, and a card; the number of rows.

    The files are the version's own, byte for byte. Raises DatasetCorrupt, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    for name in SPLITS:
        count = int(version.manifest["counts"][name])
        if count:
            write_atomically(folder / f"{name}.parquet", iter([split_bytes(store, version, name)]))
            rows += count
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(
            f"  - split: {name}\n    path: {name}.parquet\n"
            for name in SPLITS
            if version.manifest["counts"][name]
        )
        + f"---\n\nTask {version.task_id}, version {version.digest}. `request` and `answer` are JSON.\n"
    )
    write_atomically(folder / "README.md", iter([card.encode()]))
    return rows


def _calls(store: ObjectStore, version: DatasetVersion) -> dict[str, tuple[str, str]]:
    """Call id to its split and the digest of its answer."""
    return {
        example.call_id: (name, answer_key(example.answer))
        for name in SPLITS
        for example in read_split(store, version, name)
    }
