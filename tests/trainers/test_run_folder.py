"""The run folder: what it refuses, what it survives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.tiny_run import tiny_run, tiny_spec
from trainers.run_folder import RunFolder, RunRequest, append_line, begun_before, read_tail


def test_a_folder_belongs_to_one_spec(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", tiny_base)
    again = tiny_run(tmp_path / "run", tiny_base, request={"deadline": 5.0})
    assert again.request().deadline == 5.0
    assert again.spec() == run.spec()
    with pytest.raises(ValueError, match="use one folder per spec"):
        tiny_run(tmp_path / "run", tiny_base, seed=99)


def test_the_examples_come_back(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"request": {"messages": []}, "answer": {"content": "é\n\u2028x"}, "call_id": "c"}]
    run = RunFolder.create(
        tmp_path / "run", tiny_spec(tiny_base), RunRequest(base_folder=tiny_base), rows
    )
    assert run.examples("train") == [{"request": rows[0]["request"], "answer": rows[0]["answer"]}]
    assert run.examples("validation") == []


def test_a_half_written_event_is_passed_over(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", tiny_base)
    assert run.progress().step == 0
    for step in (1, 2):
        append_line(run.events_file, {"step": step, "steps": 12, "loss": 2.0, "seconds": 0.5})
    with run.events_file.open("a") as stream:
        stream.write('{"step": 3, "st')
    progress = run.progress()
    assert (progress.step, progress.steps, progress.seconds_per_step) == (2, 12, 0.5)
    assert progress.seconds_left == 5.0


def test_only_the_tail_of_a_long_file_is_read(tmp_path: Path) -> None:
    for number in range(5000):
        append_line(tmp_path / "events", {"number": number, "padding": "x" * 40})
    tail = read_tail(tmp_path / "events")
    assert tail[-1]["number"] == 4999
    assert len(tail) < 1500
    assert [event["number"] for event in tail] == list(range(5000 - len(tail), 5000))


def test_a_command_line_can_import_specs_and_executors_without_the_heavy_libraries() -> None:
    code = (
        "import sys, trainers.spec, trainers.run_folder, trainers.artifact, trainers.base_model;"
        "import trainers.executors.open, trainers.executors.local, trainers.executors.on_ray;"
        "print([m for m in ('torch','ray','transformers','peft','trl','datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_run_is_found_again_when_only_its_steps_differ(tiny_base: Path, tmp_path: Path) -> None:
    wanted = tiny_spec(tiny_base, steps=12)
    assert begun_before(tmp_path / "none", wanted) is None
    longer = tiny_run(tmp_path / "longer", tiny_base, steps=40).spec()
    tiny_run(tmp_path / "other", tiny_base, steps=12, seed=99)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "spec.json").write_text('{"task_id": 1}')
    assert begun_before(tmp_path, wanted) == longer
    assert begun_before(tmp_path, tiny_spec(tiny_base, dataset_digest="e" * 64)) is None


def test_out_of_memory_a_team_halves_what_each_of_its_processes_computes(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, batch_size=8, processes=2)
    found = [run.halve_micro_batch("out of memory") for _ in range(3)]
    assert (found, run.micro_batch()) == ([2, 1, None], 1)
    assert run.notes()[0] == (
        "out of memory: 2 examples at once instead of 4 in each process from here on"
    )
    wide = tiny_run(tmp_path / "wide", tiny_base, batch_size=4, processes=4)
    assert wide.halve_micro_batch("out of memory") is None


def test_a_spec_that_cannot_be_carried_out_is_none(tiny_base: Path) -> None:
    for changes, words in (
        ({"old_share": 0.2}, "go together"),
        ({"old_datasets": ("e" * 64,)}, "go together"),
        ({"batch_size": 4, "processes": 3}, "multiple"),
    ):
        with pytest.raises(ValidationError, match=words):
            tiny_spec(tiny_base, **changes)
