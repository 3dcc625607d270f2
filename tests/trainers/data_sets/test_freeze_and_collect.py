"""Freezing while old versions are cleared away: whole or refused, never half there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from infra.database.garbage import BeingRemoved, add_mark, find_mark, move_mark
from infra.database.sources import read_sources
from tests.trainers.data_sets.test_freeze import every, frozen
from tests.trainers.recorded import SETTINGS, START, home
from trainers.data_sets.freeze import freeze

LATER = START + timedelta(days=2)


def mark(database, version, *states: str) -> None:
    """Bring the version's mark as far as the last of these states."""
    with database.begin() as connection:
        add_mark(connection, version.location, "dataset", version.digest, "old", START)
        for state in states:
            found = find_mark(connection, version.location)
            assert move_mark(connection, found, state, LATER)


def marked(database, version):
    with database.read() as connection:
        return find_mark(connection, version.location)


def test_a_version_remembers_its_log_objects_by_row(tmp_path):
    store, database, task, version = frozen(tmp_path, [home(n) for n in range(40)])
    keys = [item.key for item in store.list("logs/")]
    with database.read() as connection:
        assert read_sources(connection, version.digest) == keys
    freeze(store, database, SETTINGS, task.id, LATER)
    with database.read() as connection:
        assert read_sources(connection, version.digest) == keys


def test_a_version_that_may_go_is_wanted_again(tmp_path):
    store, database, task, version = frozen(tmp_path, [home(n) for n in range(40)])
    mark(database, version)
    assert freeze(store, database, SETTINGS, task.id, LATER) == version
    assert marked(database, version) is None


def test_a_version_that_was_removed_is_written_again(tmp_path):
    store, database, task, version = frozen(tmp_path, [home(n) for n in range(40)])
    examples = every(store, version)
    mark(database, version, "condemned", "removed")
    for item in list(store.list(version.location)):
        store.delete(item.key)
    assert freeze(store, database, SETTINGS, task.id, LATER) == version
    assert every(store, version) == examples
    assert marked(database, version) is None


def test_while_it_is_being_removed_freezing_is_refused_and_says_what_to_do(tmp_path):
    store, database, task, version = frozen(tmp_path, [home(n) for n in range(40)])
    mark(database, version, "condemned")
    with pytest.raises(BeingRemoved, match="do it again in a moment"):
        freeze(store, database, SETTINGS, task.id, LATER + timedelta(minutes=5))
    # Whoever condemned it is long dead: nobody deletes there any more.
    assert freeze(store, database, SETTINGS, task.id, LATER + timedelta(hours=2)) == version
    assert marked(database, version) is None


def test_condemned_between_the_files_and_the_row_it_is_refused(tmp_path, monkeypatch):
    store, database, task, version = frozen(tmp_path, [home(n) for n in range(40)])
    from trainers.data_sets import freeze as module

    real = module.write_version

    def write_and_lose(*given):
        written = real(*given)
        mark(database, version, "condemned")
        return written

    monkeypatch.setattr(module, "write_version", write_and_lose)
    with pytest.raises(BeingRemoved, match="write it again"):
        freeze(store, database, SETTINGS, task.id, LATER)
