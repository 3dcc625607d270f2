"""The garbage collector's pauses, in processes of their own: its state is a whole process's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.gateway.pauses import YOUNG


def in_process(code: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", "import gc\n" + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return [int(word) for word in done.stdout.split()]


KEEP = "from serving.gateway import pauses\npauses.keep_short()\n"


@pytest.mark.parametrize(("before", "bounded"), [("", False), (KEEP, True)])
def test_what_stays_is_looked_through_once_and_little_at_a_time(before: str, bounded: bool) -> None:
    """How many objects each look goes through, while a hundred thousand that stay are made."""
    (most,) = in_process(
        before + "looks = []\n"
        "def note(phase, info):\n"
        "    if phase == 'start':\n"
        "        young = range(info['generation'] + 1)\n"
        "        looks.append(sum(len(gc.get_objects(generation=one)) for one in young))\n"
        "gc.callbacks.append(note)\n"
        "kept = [[] for _ in range(100_000)]\n"
        "print(max(looks))\n"
    )
    assert (most <= 2 * YOUNG) is bounded


def test_cycles_are_freed_young_at_once_and_old_by_the_whole_collection() -> None:
    young, old, left = in_process(
        KEEP + "class Node: pass\n"
        "import weakref\n"
        "def cycle():\n"
        "    one = Node(); one.itself = one\n"
        "    return one\n"
        "young = weakref.ref(cycle())\n"
        "old = cycle(); seen = weakref.ref(old)\n"
        f"kept = [[] for _ in range({4 * YOUNG})]\n"
        "print(int(young() is not None))\n"
        "del old\n"
        f"more = [[] for _ in range({4 * YOUNG})]\n"
        "print(int(seen() is not None))\n"
        "pauses.collect_all()\n"
        "print(int(seen() is not None))\n"
    )
    assert (young, old, left) == (0, 1, 0)


def test_what_is_set_aside_is_freed_when_nothing_refers_to_it() -> None:
    before, after = in_process(
        KEEP + f"kept = [[] for _ in range({20 * YOUNG})]\n"
        "print(gc.get_freeze_count())\n"
        "kept.clear()\n"
        "print(gc.get_freeze_count())\n"
    )
    assert before - after >= 15 * YOUNG
