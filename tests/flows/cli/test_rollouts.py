"""``nightschool rollouts`` as an operator meets it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from serving.registry.registry import Registry
from serving.rollout.controller import tend
from serving.rollout.machine import Observation
from tests.flows.cli.conftest import Run, parsed

CODE = "from flows.cli import main; main()"


def only(registry: Registry) -> str:
    (rollout,) = registry.rollouts()
    return rollout.id


def test_watch_shows_the_open_ones_once_and_as_json(run: Run, registry: Registry):
    said = run("rollouts", "watch", "--once").stdout
    assert registry.rollouts()[0].adapter in said and "as good" in said
    (row,) = parsed(run("rollouts", "watch", "--once", "--json"))
    assert (row["id"], row["state"], row["share"]) == (only(registry), "pending", "0%")
    run("rollouts", "abort", only(registry))
    assert "No rollout is open." in run("rollouts", "watch", "--once").stdout


def test_watch_is_redrawn_until_ctrl_c(folder: Path, registry: Registry):
    program = subprocess.Popen(
        [sys.executable, "-c", CODE, "rollouts", "watch", "--every", "0.2"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert program.stdout is not None
    looks = 0
    while looks < 2:
        line = program.stdout.readline()
        assert line, "it ended by itself"
        looks += bool(re.match(r"\d{4}-\d\d-\d\d .* UTC$", line))
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=30)
    assert program.returncode == 0


def test_show_says_what_happened_why_and_who_did_it(
    run: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("USER", "ann")
    run("rollouts", "pause", only(registry), "--why", "strange totals")
    said = run("rollouts", "show", only(registry)).stdout
    assert "is pending, paused" in said
    for word in ("ann", "rollout.paused", "strange totals", "night", "deadline", "share     0%"):
        assert word in said, word
    body = parsed(run("rollouts", "show", only(registry), "--json"))
    assert body["paused"] is True and body["policy"]["margin"] == 0.05
    assert [step["what"] for step in body["steps"]] == ["rollout.opened", "rollout.paused"]
    assert "no rollout 'nothing'" in run("rollouts", "show", "nothing", status=3).stderr


def test_pause_resume_abort_and_the_refusals_between(run: Run, registry: Registry):
    which = only(registry)
    assert "is paused already" not in run("rollouts", "pause", which).stdout
    assert "it is paused already" in run("rollouts", "pause", which, status=1).stderr
    assert "does not wait for an approval" in run("rollouts", "approve", which, status=1).stderr
    assert parsed(run("rollouts", "resume", which, "--json"))["state"] == "pending"
    assert "it is not paused" in run("rollouts", "resume", which, status=1).stderr
    # By its task, too.
    run("rollouts", "abort", "invoice-fields", "--why", "not today")
    (rollout,) = registry.rollouts()
    assert (rollout.state, rollout.reason) == ("inconclusive", "aborted: not today")
    assert registry.adapter(rollout.adapter).state == "registered"
    for named in (which, "invoice-fields"):  # of a task without an open one the newest
        assert "it has ended: inconclusive" in run("rollouts", "pause", named, status=1).stderr
    assert "is inconclusive" in run("rollouts", "show", "invoice-fields").stdout


def test_replay_and_picture_of_a_rollout_that_was_only_opened(
    run: Run, registry: Registry, folder: Path
):
    rows = parsed(run("rollouts", "replay", only(registry), "--json"))
    assert [(row["what"], row["source"], row["same"]) for row in rows] == [
        ("rollout.opened", "order", True)
    ]
    assert run("rollouts", "picture", only(registry)).stdout == "rollout.html\n"
    assert "<svg" in (folder / "rollout.html").read_text()
    run("rollouts", "picture", only(registry), "--png", "image", "--to", "page.svg")
    drawn = ElementTree.fromstring((folder / "page.svg").read_text())
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg", "it stands alone"
    with Image.open(folder / "image") as image:
        image.load()
        # What was drawn is there: the threshold's red, and black words.
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert {(0xB3, 0x26, 0x1E), (0, 0, 0), (255, 255, 255)} <= colours
    for place, told in (
        ("page.pdf", "end it in one of .html, .png, .svg"),
        ("no/a.png", "no/a.png"),
    ):
        status = 2 if place.endswith("pdf") else 1
        assert (
            told in run("rollouts", "picture", only(registry), "--to", place, status=status).stderr
        )


def test_replay_fails_when_a_step_comes_out_different(run: Run, registry: Registry):
    # A step that says it rests on a log, and there is no such log.
    seen = Observation(
        loaded=True, verdict="bad", canary_sessions=9, source={"now": "2026-05-01T12:00:00+00:00"}
    )
    tend(registry, only(registry), lambda _: seen)
    assert registry.rollout(only(registry)).state == "rolled_back"
    failed = run("rollouts", "replay", only(registry), status=1).stdout
    assert "different" in failed and "rollout.rolled_back: verdicts: " in failed


def test_a_rollback_takes_the_start_of_a_digest(run: Run, registry: Registry):
    first = registry.route("invoice-fields").champion
    run("rollback", "invoice-fields")  # the candidate
    run("rollback", "invoice-fields", "--to", "teacher")
    assert registry.adapter(first).state == "rejected"
    start = first.partition("@")[2][:6]
    refused = run("rollback", "invoice-fields", "--to", start, status=1)
    assert f"{first} was rejected or retired and may not answer" in refused.stderr
