"""Old run folders go; one that is trained in, or was touched lately, stays."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from trainers.old_runs import clear_run, find_runs

NOW = 2_000_000_000.0
WEEK = 7 * 86400.0


def run(folder: Path, name: str, idle: float) -> Path:
    path = folder / name
    (path / "checkpoints").mkdir(parents=True)
    for part in ("spec.json", "events.jsonl", "checkpoints"):
        if part != "checkpoints":
            (path / part).write_text('{"dataset_digest": "d"}')
        os.utime(path / part, (NOW - idle, NOW - idle))
    os.utime(path, (NOW - idle, NOW - idle))
    return path


def test_what_nobody_touched_for_long_may_go(tmp_path: Path):
    run(tmp_path, "old", WEEK + 1), run(tmp_path, "young", WEEK - 1)
    resumed = run(tmp_path, "resumed", WEEK * 5)
    os.utime(resumed / "events.jsonl", (NOW - 60, NOW - 60))
    (tmp_path / "a file").write_text("no run")
    verdicts = {one.path.name: one.keep for one in find_runs(tmp_path, NOW, WEEK)}
    assert verdicts == {"old": False, "young": True, "resumed": True}
    assert find_runs(tmp_path / "nowhere", NOW, WEEK) == []


def test_a_run_goes_whole_unless_a_process_works_in_it(tmp_path: Path):
    path = run(tmp_path, "old", WEEK + 1)
    with (path / "lock").open("a") as lock:
        os.utime(path, (NOW - WEEK - 1, NOW - WEEK - 1))
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not clear_run(path, NOW, WEEK)
        assert (path / "spec.json").exists()
    assert clear_run(path, NOW, WEEK)
    assert not path.exists()


def test_a_run_that_was_touched_since_the_look_stays(tmp_path: Path):
    path = run(tmp_path, "old", WEEK + 1)
    os.utime(path / "events.jsonl", (NOW - 1, NOW - 1))
    assert not clear_run(path, NOW, WEEK)
    assert (path / "spec.json").exists()


def test_what_is_no_run_stays_however_old(tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "spec.json").write_text('{"camera": 1}')
    os.utime(photos, (0, 0))
    (tmp_path / "link").symlink_to(photos)
    assert find_runs(tmp_path, NOW, WEEK) == []
    assert not clear_run(photos, NOW, WEEK)
    assert (photos / "spec.json").exists()
    assert not clear_run(tmp_path / "gone meanwhile", NOW, WEEK)


def test_a_clearing_that_was_killed_is_ended_by_the_next(tmp_path: Path):
    path = run(tmp_path, "old", WEEK + 1)
    (path / "spec.json").unlink()
    (path / ".nightschool-run").touch()
    for entry in (*path.iterdir(), path):
        os.utime(entry, (NOW - WEEK - 1, NOW - WEEK - 1))
    assert [one.path for one in find_runs(tmp_path, NOW, WEEK)] == [path]
    assert clear_run(path, NOW, WEEK)
    assert not path.exists()
