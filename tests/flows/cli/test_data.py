"""Tasks and data sets by hand: what a person says stays said, and what is exported can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.database.events import list_events
from infra.database.open import Database
from serving.registry.registry import Registry
from tests.flows.cli.conftest import invoke as run
from tests.trainers.recorded import SETTINGS, START, home, opened, put_log
from trainers.data_sets.freeze import freeze
from trainers.data_sets.splits import SPLITS
from trainers.data_sets.versions import read_split
from trainers.discover.discover import TaskSummary, discover
from trainers.ingest.ingest import ingest

World = tuple[Any, Database, TaskSummary]


def night(world: tuple[Any, Database], first: int, sequence: int) -> TaskSummary:
    store, database = world
    put_log(store, [home(n) for n in range(first, first + 40)], sequence)
    ingest(store, database, SETTINGS, holder="night", now=START)
    (task,) = discover(store, database, SETTINGS, START)
    return task


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    store, database = opened(tmp_path)
    (tmp_path / "nightschool.toml").write_text(
        f'[database]\nurl = "sqlite:///{tmp_path}/night.db"\n[storage]\nurl = "{tmp_path}/objects"\n'
    )
    return store, database, night((store, database), 0, 0)


def test_a_name_and_a_pin_survive_the_next_night(world: World):
    store, database, task = world
    run("tasks", "rename", task.id, "Lights and lamps")
    run("tasks", "pin", task.id, "--why", "it is right")
    before = json.loads(run("tasks", "show", task.id, "--json").stdout)
    assert (before["name"], before["pinned"]) == ("Lights and lamps", True)
    assert set(before["score"]) >= {"value", "volume", "repetition", "format"}
    again = night((store, database), 100, 1)
    after = json.loads(run("tasks", "show", task.id, "--json").stdout)
    assert (again.id, again.size) == (task.id, 80)
    assert (after["name"], after["pinned"], after["radius"]) == (
        "Lights and lamps",
        True,
        before["radius"],
    )
    with database.read() as connection:
        said = [event.what for event in list_events(connection, subject=task.id)]
        (pinned,) = list_events(connection, what="task.pinned")
    assert said.count("task.renamed") == 1
    assert pinned.why == "it is right"
    run("tasks", "pin", task.id, "--undo")
    assert not json.loads(run("tasks", "show", task.id, "--json").stdout)["pinned"]


def test_an_ignored_task_is_left_to_the_teacher_night_after_night(world: World):
    store, database, task = world
    run("tasks", "ignore", task.id)
    assert night((store, database), 100, 1).policy == "teacher"
    run("tasks", "ignore", task.id, "--undo")
    assert json.loads(run("tasks", "--json").stdout)[0]["policy"] == "specialize"


def test_whether_a_person_agrees_to_promotions_is_said_by_task(world: World):
    _, database, task = world
    run("tasks", "approval", task.id, "approve", "--as", "ann", "--why", "it pays invoices")
    assert Registry(database).task(task.id).approval == "approve"
    run("tasks", "approval", task.id, "default")
    assert Registry(database).task(task.id).approval is None
    with database.read() as connection:
        said = list_events(connection, subject=task.id, what="task.approval")
    assert sorted(event.why == "it pays invoices" and event.actor == "ann" for event in said) == [
        False,
        True,
    ]
    run("tasks", "approval", "nobody", "auto", status=3)


def test_what_is_wrong_is_said(world: World):
    assert "no task" in run("tasks", "show", "nobody", status=3).output.lower()
    assert "1 to 200 characters" in run("tasks", "rename", world[2].id, " ", status=2).output
    assert "no data set begins with abc" in run("datasets", "show", "abc", status=3).output
    assert "No data sets yet" in run("datasets", "list").output


def test_two_versions_compared_and_one_exported(world: World, tmp_path: Path):
    store, database, task = world
    first = freeze(store, database, SETTINGS, task.id, START)
    night((store, database), 100, 1)
    second = freeze(store, database, SETTINGS, task.id, START)
    listed = json.loads(run("datasets", "list", task.id, "--json").stdout)
    assert [row["digest"] for row in listed] == [first.digest, second.digest]
    found = json.loads(
        run("datasets", "diff", first.digest[:10], second.digest[:10], "--json").stdout
    )
    before, after = (
        {e.call_id for name in SPLITS for e in read_split(store, version, name)}
        for version in (first, second)
    )
    # Another 40 calls, but for near copies in two splits, which another version chooses otherwise.
    assert len(after - before) > 30
    assert (set(found["added"]), set(found["removed"])) == (after - before, before - after)
    assert found["other answer"] == []
    back = json.loads(
        run("datasets", "diff", second.digest[:10], first.digest[:10], "--json").stdout
    )
    assert sorted(back["removed"]) == sorted(found["added"])
    shown = json.loads(run("datasets", "show", second.digest[:10], "--json").stdout)
    assert shown["digest"] == second.digest

    folder = tmp_path / "out"
    run("datasets", "export", second.digest[:10], str(folder))
    assert "is not empty" in run("datasets", "export", first.digest, str(folder), status=2).output
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == second.manifest["counts"]
    assert json.loads(loaded["train"][0]["answer"])["role"] == "assistant"


def test_a_data_set_that_was_removed_says_so_and_why(world: World):
    store, database, task = world
    version = freeze(store, database, SETTINGS, task.id, START)
    session = read_split(store, version, "train")[0].session.split("/", 1)[1]
    run("forget", "--session", session, "--yes")
    (listed,) = json.loads(run("datasets", "list", "--json").stdout)
    assert listed["removed"] == "it holds what was to be forgotten"
    told = run("datasets", "show", version.digest[:10], status=3).output
    assert f"{version.digest[:16]} was removed: it holds what was to be forgotten" in told
