"""How a gateway learns of changes: announced, looked for, with the database there and away."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import OperationalError

from bench.support.programs import Postgres, has_postgres, scratch
from infra.database.data_version import DataVersion
from infra.database.listening import Listener
from infra.database.open import Database
from infra.database.patience import answers_within
from infra.database.tables import routes, tasks
from infra.objects.store import ObjectStore
from serving.gateway.refresh import RouteTable
from serving.gateway.routing import Router
from serving.gateway.snapshot_rows import SnapshotReader, read_snapshot
from serving.registry.keys import create_key
from tests.contracts.servers import PostgresServer
from tests.serving.gateway.world import add_adapter, add_task, chat, set_route

NEVER = 600.0
"""As ``refresh_seconds``: nobody looks by himself while the test lasts."""


@pytest.fixture
def shared(postgres: PostgresServer) -> Iterator[Database]:
    opened = Database(postgres.new_database())
    opened.upgrade()
    yield opened
    opened.close()


def wait_until(what: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_every_table_announces_its_changes_when_they_are_committed(
    shared: Database, store: ObjectStore, tmp_path: Path
) -> None:
    listener = Listener(shared.url)
    try:
        assert listener.wait(0)  # connected: what happened before was not heard
        assert not listener.wait(0)

        def heard(write: Callable[[], object]) -> None:
            write()
            assert listener.wait(10)
            assert not listener.wait(0)

        heard(lambda: add_task(shared))
        heard(lambda: add_adapter(shared, store, tmp_path))
        heard(lambda: set_route(shared))
        heard(lambda: set_route(shared, version=2))
        heard(lambda: create_key(shared, "acme", "call", "x"))
        with shared.begin() as connection:
            connection.execute(update(tasks).values(policy="teacher"))
            connection.rollback()
        assert not listener.wait(0.2)
        with shared.begin() as connection:
            for version in range(50):
                connection.execute(update(routes).values(version=version))
            assert not listener.wait(0.2)  # not before the commit
        assert listener.wait(10)
        assert not listener.wait(0)  # and once per transaction
    finally:
        listener.close()


def test_a_listener_that_was_cut_off_listens_again(shared: Database) -> None:
    listener = Listener(shared.url)
    try:
        assert listener.wait(0) and listener.listening
        with shared.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'nightschool listener'"
                    " AND datname = current_database()"
                )
            )
        wait_until(lambda: not listener.wait(1) and not listener.listening)
        wait_until(lambda: listener.wait(0.05))  # a change may have passed unheard
        assert listener.listening
    finally:
        listener.close()


def test_a_listener_without_a_database_waits_its_time_and_can_be_woken() -> None:
    listener = Listener(Database("postgresql+psycopg://x@127.0.0.1:9/x").url)
    threading.Timer(0.05, listener.wake).start()
    try:
        started = time.monotonic()
        assert not listener.wait(60)
        assert time.monotonic() - started < 30
        assert not listener.wait(0.01)  # the wake-up is used up
    finally:
        listener.close()


def test_an_announced_change_is_read_at_once(shared: Database, tmp_path: Path) -> None:
    add_task(shared)
    table = RouteTable(lambda: shared, tmp_path / "routes.json", NEVER)
    table.start()
    try:
        wait_until(lambda: table.known and table.listening)
        for version in (5, 6, 7):
            set_route(shared, version=version)
            wait_until(lambda wanted=version: table.current.tasks[0].version == wanted)
    finally:
        table.stop()
    assert table._thread is not None and not table._thread.is_alive()


def test_without_announcements_looking_finds_the_change(
    each_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listener, "_connect", lambda _: False)
    add_task(each_database)
    table = RouteTable(lambda: each_database, tmp_path / "routes.json", 0.02)
    table.start()
    try:
        wait_until(lambda: table.known)
        set_route(each_database, version=5)
        wait_until(lambda: table.current.tasks[0].version == 5)
        assert not table.listening
    finally:
        table.stop()


def test_only_what_changed_is_made_anew(
    each_database: Database, store: ObjectStore, tmp_path: Path
) -> None:
    database = each_database
    names = [add_task(database, f"task-{number}") for number in range(5)]
    adapter = add_adapter(database, store, tmp_path, "task-1")
    reader = SnapshotReader(database)
    try:
        first = reader.read()
        assert first is not None and [task.id for task in first.tasks] == names
        assert reader.read() is None
        set_route(database, "task-1", champion=adapter)
        second = reader.read()
        assert second is not None
        same = [a is b for a, b in zip(first.tasks, second.tasks, strict=True)]
        assert same == [True, False, True, True, True]
        assert second.tasks[1].champion is not None
        assert second.tasks[1].centroid is first.tasks[1].centroid
        # The adapter is taken away without a word to its route.
        from infra.database.tables import adapters

        with database.begin() as connection:
            connection.execute(update(adapters).values(state="rejected"))
        third = reader.read()
        assert third is not None and third.tasks[1].champion is None
        with database.begin() as connection:
            connection.execute(delete(routes))
            connection.execute(update(tasks).where(tasks.c.id == "task-0").values(state="retired"))
            connection.execute(
                update(tasks).where(tasks.c.id == "task-4").values(policy="teacher", version=2)
            )
        last = reader.read()
        assert last is not None and [task.id for task in last.tasks] == names[1:]
        assert last.tasks[-1].policy == "teacher"
        assert last.says(read_snapshot(database))
    finally:
        reader.close()


def test_a_database_file_that_was_put_back_is_noticed(database: Database, tmp_path: Path) -> None:
    add_task(database)
    set_route(database, version=1)
    database.close()
    assert database.url.database
    file = Path(database.url.database)
    shutil.copy(file, tmp_path / "backup.db")
    set_route(database, version=2)
    reader = SnapshotReader(database)
    try:
        read = reader.read()
        assert read is not None and read.tasks[0].version == 2
        for rest in file.parent.glob(f"{file.name}-*"):
            rest.unlink()
        (tmp_path / "backup.db").replace(file)
        read = reader.read()
        assert read is not None and read.tasks[0].version == 1
    finally:
        reader.close()


def test_a_file_version_tells_of_other_writers(database: Database) -> None:
    seen = DataVersion(database)
    before = seen.read()
    assert seen.read() == before
    add_task(database)
    assert seen.read() != before
    seen.close()


def test_the_router_is_made_before_the_routes_are_shown(database: Database, tmp_path: Path) -> None:
    add_task(database)
    shown: list[tuple[object, object]] = []

    def changed(_: object) -> None:
        found = table.router.route(chat("switch the kitchen light on"), None, "t")
        shown.append((found and found.task, threading.current_thread()))

    table = RouteTable(lambda: database, tmp_path / "routes.json", NEVER, changed)
    empty: Router = table.router
    assert empty.route(chat("switch the kitchen light on"), None, "t") is None
    table.start()
    try:
        wait_until(lambda: shown)
        assert shown == [(table.current.tasks[0], table._thread)]
    finally:
        table.stop()
    # A restart has both from disk.
    again = RouteTable(lambda: database, tmp_path / "routes.json", NEVER)
    assert again.router.route(chat("switch the kitchen light on"), None, "t") is not None


def test_a_stopped_database_is_not_waited_for() -> None:
    if not has_postgres():
        pytest.skip("no PostgreSQL found: run infra/deploy/install-test-servers.sh")
    with scratch("stopped") as folder:
        server = Postgres(folder)
        try:
            server.start()
            database = Database(server.new_database("x"), busy_timeout_seconds=2)
            with database.read() as connection:
                connection.execute(text("SELECT 1"))
            server.pause()
            with (
                pytest.raises(OperationalError),
                answers_within(0.2),
                database.read() as connection,
            ):
                connection.execute(text("SELECT 1"))
            server.resume()
            with answers_within(20), database.read() as connection:
                assert connection.execute(text("SELECT 1")).scalar_one() == 1
            database.close()
        finally:
            server.kill()
