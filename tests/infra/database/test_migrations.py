"""The migrations and the declared tables are one and the same, on both databases."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from infra.database.events import record_event
from infra.database.open import Database, DatabaseError, DatabaseUnreachable, SchemaOutdated
from infra.database.tables import metadata
from tests.contracts.servers import free_port


def test_migrations_give_the_declared_tables(each_database: Database) -> None:
    with each_database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_check_names_the_command_until_upgraded(empty_database: Database) -> None:
    with pytest.raises(SchemaOutdated, match="nightschool db upgrade"):
        empty_database.check()
    revision = empty_database.upgrade()
    empty_database.check()
    assert empty_database.upgrade() == revision


def test_a_newer_release_s_tables_are_left_alone(each_database: Database) -> None:
    with each_database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for attempt in (each_database.check, each_database.upgrade):
        with pytest.raises(SchemaOutdated, match="newer release"):
            attempt()


def test_two_processes_upgrade_at_once(empty_database: Database) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        revisions = list(pool.map(upgrade_in_process, [url] * 4))
    assert len(set(revisions)) == 1
    empty_database.check()


def upgrade_in_process(url: str) -> str:
    return Database(url).upgrade()


def test_a_failed_migration_leaves_no_trace(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.database.migrations import runner

    def half(connection: object) -> str:
        real(connection)  # type: ignore[arg-type]
        raise RuntimeError("killed half-way")

    real = runner.upgrade
    monkeypatch.setattr(runner, "upgrade", half)
    with pytest.raises(RuntimeError):
        empty_database.upgrade()
    monkeypatch.undo()
    assert inspect(empty_database.engine).get_table_names() == []
    empty_database.upgrade()
    empty_database.check()


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET why = 'other'", "DELETE FROM events"], ids=["update", "delete"]
)
def test_the_database_refuses_to_edit_events(each_database: Database, statement: str) -> None:
    with each_database.begin() as connection:
        record_event(connection, actor="a", what="route.changed", subject="t", why="first")
    with pytest.raises(DBAPIError, match="append-only"), each_database.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory"),
        ("mysql://user:secret@host/db", "speaks sqlite and"),
        ("secret", "not a URL"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_no_server_is_one_clear_line_without_the_password() -> None:
    database = Database(
        f"postgresql://user:secret@127.0.0.1:{free_port()}/db", busy_timeout_seconds=2
    )
    with pytest.raises(DatabaseUnreachable, match="url is right") as caught:
        database.check()
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("dear diary, " * 100)
    with pytest.raises(DatabaseUnreachable, match=r"notes\.db"):
        Database(f"sqlite:///{tmp_path}/notes.db", busy_timeout_seconds=0.2).check()
