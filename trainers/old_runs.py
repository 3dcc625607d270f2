"""Scratch folders of training runs that nobody has touched for long: found, and cleared away."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainers.run_folder import RunFolder


@dataclass(frozen=True)
class OldRun:
    path: Path
    keep: bool
    why: str


def find_runs(runs: Path, now: float, keep_seconds: float) -> list[OldRun]:
    """A verdict on every run folder. ``now``: seconds since the epoch."""
    found = []
    for path in sorted(runs.iterdir()) if runs.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            idle = now - _last_touched(path)
            why = f"untouched for {idle / 3600:.0f} hours"
            found.append(OldRun(path, idle < keep_seconds, why))
    return found


def clear_run(path: Path, now: float, keep_seconds: float) -> bool:
    """Delete a run's folder; False when a process works in it or it was touched meanwhile.

    The spec goes first: without it the folder is no run, so a kill in the middle leaves nothing that
    a later night would go on with.
    """
    run = RunFolder(path)
    touched = _last_touched(path)
    with run.lock_file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if now - touched < keep_seconds:
            return False
        run.spec_file.unlink(missing_ok=True)
        shutil.rmtree(path)
    return True


def _last_touched(path: Path) -> float:
    """When anything directly in the folder last changed; a run writes there at every step."""
    return max(_times(path), default=0.0)


def _times(path: Path) -> Iterator[float]:
    yield path.stat().st_mtime
    for entry in path.iterdir():
        if entry.name == "lock":
            continue  # looking at a run is not working on it
        try:
            yield entry.stat().st_mtime
        except FileNotFoundError:
            continue
