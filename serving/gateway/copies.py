"""Keeps the local copies of adapters within a bound. Blocks: for a thread.

Other gateways may share the folder and the engine, and vLLM reads an adapter from its folder again
whenever it needs it: what any engine lists, and what was just pulled, is never touched.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from serving.engines.reconcile import OWNED

YOUNG_SECONDS = 900.0
"""A copy used so lately may be about to be loaded by another gateway."""
SCRATCH_SECONDS = 3600.0
"""Half a pull this old has lost its process."""


def prune(
    folder: Path, keep: Collection[str], max_bytes: int, now: float | None = None
) -> list[str]:
    """Delete the copies used longest ago while all take more than ``max_bytes``, and old scratch.

    Args:
        folder: where the copies are, each a folder with the adapter's name.
        keep: names that must stay; they count as used now.
        now: seconds since 1970; None: the wall clock.

    Returns the deleted names. What cannot be deleted is left for the next time.
    """
    now = time.time() if now is None else now
    copies: list[tuple[float, str, int]] = []
    total = 0
    for entry in _entries(folder):
        try:
            used = entry.stat().st_mtime
            if entry.name.startswith("."):
                if now - used > SCRATCH_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)
                continue
            if not OWNED.fullmatch(entry.name):
                continue
            size = sum(file.stat().st_size for file in os.scandir(entry.path))
            total += size
            if entry.name in keep:
                os.utime(entry.path, (now, now))
            elif now - used > YOUNG_SECONDS:
                copies.append((used, entry.name, size))
        except OSError:
            continue  # another gateway was faster
    deleted = []
    for _, name, size in sorted(copies):
        if total <= max_bytes:
            break
        if _delete(folder / name):
            total -= size
            deleted.append(name)
    return deleted


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _delete(path: Path) -> bool:
    # Away as a whole first: nobody may find half of it under its name.
    gone = path.with_name(f".gone-{uuid.uuid4().hex}")
    try:
        path.rename(gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True
