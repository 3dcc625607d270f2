"""Scratch folders of training runs that nobody has touched for long: found, and cleared away.

Only folders that carry the mark of a run are looked at: whoever points ``training.runs`` at a folder
with other things in it loses none of them.
"""

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
        if not RunFolder(path).is_run:
            continue
        touched = _last_touched(path)
        if touched is None:
            continue
        idle = now - touched
        found.append(OldRun(path, idle < keep_seconds, f"untouched for {idle / 3600:.0f} hours"))
    return found


def clear_run(path: Path, now: float, keep_seconds: float) -> bool:
    """Delete a run's folder; False when it is none (any more), a process works in it or touched it.

    The spec goes first, so that no later night goes on with a half-cleared run; the mark goes last,
    so that a kill in the middle leaves a folder that the next time still knows as a run.
    """
    run = RunFolder(path)
    touched = _last_touched(path)
    if not run.is_run or touched is None:
        return False
    try:
        with run.lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if now - touched < keep_seconds:
                return False
            run.mark.touch()
            run.spec_file.unlink(missing_ok=True)
            for entry in path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry != run.mark:
                    entry.unlink(missing_ok=True)
            run.mark.unlink(missing_ok=True)
            path.rmdir()
    except FileNotFoundError:
        return False  # another clearing was faster
    except OSError:
        # Something new came in, or something cannot be removed: marked again, for the next time.
        if path.is_dir():
            run.mark.touch()
        return False
    return True


def _last_touched(path: Path) -> float | None:
    """When anything directly in the folder last changed (a run writes there at every step); None
    when the folder is gone."""
    try:
        return max(_times(path), default=0.0)
    except FileNotFoundError:
        return None


def _times(path: Path) -> Iterator[float]:
    yield path.stat().st_mtime
    for entry in path.iterdir():
        if entry.name == "lock":
            continue  # looking at a run is not working on it
        try:
            yield entry.stat().st_mtime
        except FileNotFoundError:
            continue
