"""Local copies of adapters: bounded, and never taken from under an engine or another gateway."""

from __future__ import annotations

import os
from pathlib import Path

from serving.gateway.copies import SCRATCH_SECONDS, YOUNG_SECONDS, prune

NOW = 1_000_000.0
OLD = YOUNG_SECONDS + 1
NAMES = [f"task@{number:016x}" for number in range(4)]


def copy(folder: Path, name: str, age_seconds: float, size: int = 1000) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_model.safetensors").write_bytes(b"x" * size)
    os.utime(folder / name, (NOW - age_seconds, NOW - age_seconds))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_copies_used_longest_ago_go_until_the_rest_fits(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        copy(tmp_path, name, OLD + number)
    assert prune(tmp_path, (), 4000, NOW) == []
    assert prune(tmp_path, (), 2500, NOW) == [NAMES[3], NAMES[2]]
    assert left(tmp_path) == set(NAMES[:2])


def test_what_an_engine_lists_stays_and_counts_as_used(tmp_path: Path) -> None:
    for name in NAMES:
        copy(tmp_path, name, OLD)
    assert set(prune(tmp_path, NAMES[:1], 0, NOW)) == set(NAMES[1:])
    assert prune(tmp_path, (), 0, NOW + 1) == [], "it was in use a second ago"
    assert prune(tmp_path, (), 0, NOW + OLD) == NAMES[:1]


def test_what_was_just_pulled_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    copy(tmp_path, NAMES[0], 1)
    copy(tmp_path, "somebody-elses", OLD)
    assert prune(tmp_path, (), 0, NOW) == []


def test_half_a_pull_goes_once_nobody_can_be_at_it(tmp_path: Path) -> None:
    copy(tmp_path, ".pull-1", SCRATCH_SECONDS + 1)
    copy(tmp_path, ".damaged-1", SCRATCH_SECONDS + 1)
    copy(tmp_path, ".pull-2", SCRATCH_SECONDS - 60)
    assert prune(tmp_path, (), 1 << 30, NOW) == []
    assert left(tmp_path) == {".pull-2"}


def test_no_folder_yet(tmp_path: Path) -> None:
    assert prune(tmp_path / "none", (), 0, NOW) == []
