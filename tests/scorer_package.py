"""An installed package that offers scorers: as pip leaves it, on the path of whoever wants it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PACKAGE = """
import os, sys, time

def make_length(options):
    longest = options.get("longest", 10)
    print("made", flush=True)

    def score(expected, got, request):
        print("scoring", flush=True)
        return min(1.0, len(got["content"]) / longest)

    return score

def make_odd(options):
    def score(expected, got, request):
        does = got["content"]
        if does == "raises":
            raise ValueError("a secret: " + does)
        if does == "hangs":
            time.sleep(600)
        if does == "dies":
            os._exit(3)
        if does == "prints":
            os.write(1, b"{}" + bytes([10]))
        return {"nan": float("nan"), "two": 2, "text": "0.5", "none": None, "yes": True}.get(does, 0.5)

    return score

def make_nothing(options):
    raise RuntimeError("no licence")

def make_text(options):
    return "not a function"
"""
POINTS = """[nightschool.scorers]
length = night_scores:make_length
odd = night_scores:make_odd
nothing = night_scores:make_nothing
text = night_scores:make_text
"""


def offer_scorers(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Install the package into ``folder``, and put that on the path of processes started from now on."""
    (folder / "night_scores.py").write_text(PACKAGE)
    info = folder / "night_scores-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: night-scores\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    before = [part for part in (os.environ.get("PYTHONPATH"),) if part]
    patch.setenv("PYTHONPATH", ":".join([str(folder), *before]))
