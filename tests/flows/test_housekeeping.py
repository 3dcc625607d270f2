"""Housekeeping as a whole, and the command that runs it."""
# ruff: noqa: F811 - the fixtures are those of the other commands

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.holding import hold
from flows.housekeeping import housekeep
from flows.wiring import open_context
from infra.calls.codec import encode_lines, log_key
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from infra.settings.model import Settings
from serving.registry.registry import Registry
from tests.flows.cli.conftest import Run, empty, folder, parsed, run  # noqa: F401
from tests.serving.registry.retention.shelves import AT_ONCE, LATER, shelve, whole
from tests.serving.registry.world import NOW, add_task
from tests.trainers.recorded import SETTINGS, call
from trainers.ingest.ingest import ingest


@pytest.fixture
def world(settings: Settings, database: Database) -> Settings:
    """An adapter that may go and one in use, an old log, an old run."""
    add_task(database, "mail")
    registry, store = Registry(database), DirectoryStore(Path(settings.storage.url))
    shelve(registry, store, "mail", 1), shelve(registry, store, "mail", 2)
    store.create(log_key(NOW, "w", 1), encode_lines([call(1, time=NOW)]))
    ingest(store, database, SETTINGS, holder="test")
    old = settings.training.runs / "0123"
    old.mkdir(parents=True)
    (old / "spec.json").write_text('{"dataset_digest": "d"}')
    for path in (old / "spec.json", old):
        os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    return settings.model_copy(update={"retention": AT_ONCE.model_copy(update={"log_seconds": 1})})


def test_everything_that_is_past_its_time_goes_in_one_run(world: Settings, database: Database):
    with open_context(world) as context:
        told = housekeep(context, dry_run=True, now=LATER).counts()
        assert told == {
            "adapter would go": 1,
            "adapter kept": 1,
            "dataset kept": 2,
            "run would go": 1,
            "logs would go": 1,
        }
        assert (world.training.runs / "0123").exists()
        done = housekeep(context, now=LATER).counts()
        assert done == {
            "adapter removed": 1,
            "adapter kept": 1,
            "dataset kept": 2,
            "run removed": 1,
            "logs removed": 1,
        }
        assert not (world.training.runs / "0123").exists()
        assert list(context.store.list("logs/")) == []
        (kept,) = context.registry.adapters(state="registered")
        assert whole(context.store, kept.location)


def test_while_a_night_runs_its_logs_and_runs_are_left_alone(world: Settings, database: Database):
    with open_context(world) as context, hold(database, "night", "somebody"):
        done = housekeep(context, now=LATER).counts()
        assert (done["run not now"], done["logs not now"]) == (1, 1)
        assert (world.training.runs / "0123").exists()
        assert len(list(context.store.list("logs/"))) == 1


def test_the_command_marks_first_and_says_why(run: Run, folder: Path, empty: Database):
    assert "Nothing to clear away" in run("gc").stdout
    add_task(empty, "mail")
    registry, store = Registry(empty), DirectoryStore(folder / "objects")
    champion, *_ = [shelve(registry, store, "mail", n) for n in range(7)]
    registry.set_route("mail", 0, None, champion=champion.name, actor="ann", why="by hand")
    dry = {row["what"]: row for row in parsed(run("gc", "--dry-run", "--json"))}
    assert dry[champion.name]["why"] == "it is the champion of mail"
    (going,) = (what for what, row in dry.items() if row["outcome"] == "would go")
    assert going in run("gc").stdout
    (row,) = (row for row in parsed(run("gc", "--json")) if row["what"] == going)
    assert row["outcome"] == "waiting"
    assert len(registry.adapters(state="registered")) == 7
