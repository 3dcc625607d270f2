"""Open a database: SQLite in WAL mode on one machine, PostgreSQL for more than one.

>>> database = open_database(settings.database)
>>> database.upgrade()
>>> with database.begin() as connection:    # one transaction, committed at the end
...     connection.execute(...)

On SQLite a writing transaction takes the write lock at its start (``BEGIN IMMEDIATE``), so a
read-then-write never dies half-way with "database is locked"; ``read()`` takes none.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from infra.database.times import UtcDateTime
from infra.settings.serving import Database as DatabaseSettings

__all__ = [
    "Database",
    "DatabaseError",
    "DatabaseUnreachable",
    "SchemaOutdated",
    "UtcDateTime",
    "open_database",
]

# "night school", as a number: serializes migrations on PostgreSQL.
_MIGRATION_LOCK = 0x6E69_6768_7473
_BEGIN_OPTION = "nightschool_begin"


class DatabaseError(Exception):
    """The database cannot be used as it is; the message says what to do."""


class DatabaseUnreachable(DatabaseError):
    """No answer from the database, or it refused the connection."""


class DatabaseUrlInvalid(DatabaseError):
    """``[database] url`` cannot be right, whatever is at that place."""


class SchemaOutdated(DatabaseError):
    """The tables are not those of this release."""


class Database:
    """One database and its pool of connections. Safe to share between threads, not over a fork.

    Args:
        url: SQLAlchemy URL, ``sqlite:///path`` or ``postgresql+psycopg://...``.
        busy_timeout_seconds: longest wait for a lock or for a free connection.
        pool_size: connections kept open; as many again may be opened at a peak.

    Raises:
        DatabaseUrlInvalid: the URL is not one of the two kinds.
        DatabaseUnreachable: the folder of a SQLite file cannot be made.
    """

    def __init__(self, url: str, *, busy_timeout_seconds: float = 15, pool_size: int = 5) -> None:
        self.url = _checked_url(url)
        self.busy_timeout_seconds = busy_timeout_seconds
        self.engine = (
            self._sqlite_engine(pool_size) if self.is_sqlite else self._postgres_engine(pool_size)
        )

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"Database({self})"

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction for reading and writing: committed at the end, rolled back on an error."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view for reading, which never waits for a writer on SQLite."""
        with self.engine.connect() as connection:
            if self.is_sqlite:
                connection = connection.execution_options(**{_BEGIN_OPTION: "BEGIN"})
            yield connection

    def upgrade(self) -> str:
        """Bring the tables to this release's form; returns the revision.

        Any number of processes may call it at once: the first migrates, the others find it done.
        All of it is one transaction, so a kill in the middle leaves the old form.

        Raises:
            DatabaseUnreachable: no connection.
            SchemaOutdated: the tables were made by a newer release than this one.
        """
        from infra.database.migrations import runner

        with self._reachable(), self.engine.begin() as connection:
            if not self.is_sqlite:
                # Released with the transaction, also when this process is killed. Waiting for
                # another's migration may take longer than waiting for a row.
                connection.execute(text("SET LOCAL lock_timeout = '10min'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            found = runner.current_revision(connection)
            if found is not None and not runner.is_known(found):
                raise SchemaOutdated(_newer(self, found))
            return runner.upgrade(connection)

    def check(self) -> None:
        """Raises SchemaOutdated unless the tables are this release's, DatabaseUnreachable."""
        from infra.database.migrations import runner

        with self._reachable(), self.read() as connection:
            found, wanted = runner.current_revision(connection), runner.head_revision()
        if found == wanted:
            return
        if found is not None and not runner.is_known(found):
            raise SchemaOutdated(_newer(self, found))
        if found is None:
            raise SchemaOutdated(
                f"the database {self} has no tables yet: run nightschool db upgrade, "
                "or nightschool up, which does it by itself"
            )
        raise SchemaOutdated(
            f"the database {self} has tables of revision {found}, "
            f"this release needs {wanted}: run nightschool db upgrade"
        )

    def close(self) -> None:
        """Close the pooled connections; the object may be used again afterwards."""
        self.engine.dispose()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            # The driver's text is kept, the statement and its values are not.
            reason = str(error.orig).strip().splitlines()
            raise DatabaseUnreachable(
                f"the database {self} did not do what was asked: {reason[0] if reason else error}. "
                "Check that it runs and that [database] url is right"
            ) from error

    def _postgres_engine(self, pool_size: int) -> Engine:
        wait = int(self.busy_timeout_seconds * 1000)
        engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=self.busy_timeout_seconds,
            pool_pre_ping=True,
            json_serializer=_to_json,
            connect_args={
                "connect_timeout": max(2, int(self.busy_timeout_seconds)),
                "options": f"-c timezone=UTC -c lock_timeout={wait}",
                # A server that is gone without a word is found out in half a minute, not in hours.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            },
        )

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, given: Any, named: Any) -> Any:
            from infra.database.connection import PatientConnection

            return PatientConnection.connect(*given, **named)

        return engine

    def _sqlite_engine(self, pool_size: int) -> Engine:
        assert self.url.database
        folder = Path(self.url.database).absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnreachable(
                f"the folder {folder} cannot be made ({error.strerror}): "
                "name another file in [database] url"
            ) from None
        engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=self.busy_timeout_seconds,
            json_serializer=_to_json,
            connect_args={"timeout": self.busy_timeout_seconds},
        )
        timeout = self.busy_timeout_seconds

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, _record: Any) -> None:
            # The driver's own transaction handling hides BEGIN and commits before DDL.
            connection.isolation_level = None
            connection.execute(f"PRAGMA busy_timeout={int(timeout * 1000)}")
            _enter_wal(connection, timeout)
            # A commit that was reported is on the disk, also after a power cut.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            options = connection.get_execution_options()
            connection.exec_driver_sql(str(options.get(_BEGIN_OPTION, "BEGIN IMMEDIATE")))

        return engine


def open_database(settings: DatabaseSettings) -> Database:
    """The database of ``[database]``. Connects lazily; call ``check()`` to know that it is there."""
    return Database(
        settings.url.get_secret_value(),
        busy_timeout_seconds=settings.busy_timeout_seconds,
        pool_size=settings.pool_size,
    )


def _checked_url(url: str) -> URL:
    # The URL may hold a password, so no message quotes it whole.
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseUrlInvalid(
            "[database] url is not a URL: use sqlite:///path or "
            "postgresql+psycopg://user:password@host/name"
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise DatabaseUrlInvalid(
            f"[database] url names {parsed.drivername!r}; this release speaks sqlite and "
            "postgresql+psycopg"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise DatabaseUrlInvalid(
            "a SQLite database in memory is not shared between connections: name a file, "
            "as in sqlite:///var/nightschool.db"
        )
    return parsed


def _enter_wal(connection: sqlite3.Connection, timeout_seconds: float) -> None:
    """Switch to WAL; SQLite does not wait for its lock on this one, so the waiting is done here."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                return
            problem = sqlite3.OperationalError("this file system does not support WAL mode")
        except sqlite3.OperationalError as error:
            problem = error
        if time.monotonic() >= deadline:
            raise problem
        time.sleep(0.02)


def _to_json(value: Any) -> str:
    # PostgreSQL refuses NaN, SQLite keeps it as text that no other reader takes: refuse on both.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _newer(database: Database, found: str) -> str:
    return (
        f"the database {database} was upgraded by a newer release (revision {found}): "
        "install that release, or restore the copy made before the upgrade"
    )
