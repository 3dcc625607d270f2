"""Prefect's server does not lock itself out of its database."""

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from flows.stack.orchestrator_server import WriteLockFirst
from flows.stack.services import services
from infra.settings.model import Settings

WRITERS = '''
import asyncio, gc, sqlite3, sys, threading
from concurrent.futures import ThreadPoolExecutor
from flows.stack.garbage import collect_garbage_aside

path, aside, wait_seconds = sys.argv[1], sys.argv[2] == "aside", float(sys.argv[3])
if aside:
    collect_garbage_aside()


def connect():
    return sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)


def refused(connection):
    """A cursor whose statement failed, in a cycle: as an error with its traceback leaves it."""
    cycle = [connection.cursor()]
    cycle.append(cycle)
    try:
        cycle[0].execute("INSERT INTO runs VALUES (1)")
    except sqlite3.IntegrityError:
        pass


async def main():
    loop, one, other = asyncio.get_running_loop(), connect(), connect()
    one.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY)")
    one.execute("INSERT INTO runs VALUES (1)")
    gc.collect()
    refused(other)
    with ThreadPoolExecutor(2) as threads:
        await loop.run_in_executor(threads, one.execute, "BEGIN IMMEDIATE")
        trying = threading.Event()
        other.set_trace_callback(lambda statement: trying.set())
        waiting = loop.run_in_executor(threads, other.execute, "INSERT INTO runs VALUES (2)")
        await loop.run_in_executor(threads, trying.wait)
        # A second of the loop's work between this transaction's statements: garbage is collected.
        for _ in range(100):
            kept = [[] for _ in range(2_000)]
            await asyncio.sleep(0.01)
        await loop.run_in_executor(threads, one.execute, "COMMIT")
        await waiting


try:
    asyncio.run(main())
except sqlite3.OperationalError as error:
    sys.exit(str(error))
'''


@pytest.mark.parametrize(
    ("where", "wait_seconds", "ends"),
    [("aside", 60, ""), ("in the loop", 3, "database is locked\n")],
)
def test_a_transaction_ends_although_a_refused_cursor_of_the_next_writer_is_collected(
    where: str, wait_seconds: float, ends: str, tmp_path: Path
) -> None:
    """Collected in the loop's thread, as Python does by itself, it ends in what this is there for."""
    arguments = (str(tmp_path / "server.db"), where, str(wait_seconds))
    run = subprocess.run(
        (sys.executable, "-c", WRITERS, *arguments),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.stderr == ends


async def read_then_write_at_once(database: AioSqliteConfiguration) -> int:
    """The sum that two transactions leave behind which each read it and write one more."""
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE sums (value INTEGER)"))
        await connection.execute(sa.text("INSERT INTO sums VALUES (0)"))

    async def add(after: float) -> None:
        session = await database.session(engine)
        async with session, database.begin_transaction(session):
            value = await session.scalar(sa.text("SELECT value FROM sums"))
            await asyncio.sleep(after)
            await session.execute(sa.text("UPDATE sums SET value = :one"), {"one": value + 1})

    await asyncio.gather(add(0.2), add(0))
    session = await database.session(engine)
    async with session:
        left = await session.scalar(sa.text("SELECT value FROM sums"))
    await engine.dispose()
    return int(left)


def test_of_two_transactions_that_read_and_write_the_second_waits(tmp_path: Path) -> None:
    def left_by(database: type[AioSqliteConfiguration]) -> int:
        url = f"sqlite+aiosqlite:///{tmp_path}/{database.__name__}.db"
        return asyncio.run(read_then_write_at_once(database(connection_url=url)))

    with pytest.raises(sa.exc.OperationalError, match="database is locked"):
        left_by(AioSqliteConfiguration)
    assert left_by(WriteLockFirst) == 2


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("sqlite+aiosqlite:///server.db", "WriteLockFirst"),
        ("postgresql+asyncpg://db/x", "NoneType"),
    ],
)
def test_the_stacks_own_server_is_started_so(
    url: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    monkeypatch.setattr("prefect.cli.app", lambda: began.append("server"))
    monkeypatch.setattr(
        "flows.stack.garbage.collect_garbage_aside", lambda: began.append("garbage")
    )
    monkeypatch.setitem(MODELS_DEPENDENCIES, "database_config", None)
    server = services(Settings(), base_model=tmp_path)[0]
    monkeypatch.delitem(sys.modules, server.argv[2])
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}):
        runpy.run_module(server.argv[2], run_name="__main__")
    assert began == ["garbage", "server"]
    assert type(MODELS_DEPENDENCIES["database_config"]).__name__ == database
