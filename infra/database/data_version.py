"""Whether a SQLite file was written since it was last looked at, for the price of one pragma."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from infra.database.open import Database


class FileState(NamedTuple):
    device: int
    inode: int
    version: int
    """``PRAGMA data_version``: differs after a commit by any other connection."""


class DataVersion:
    """Looks through a connection of its own: the pragma's value has no meaning on another one."""

    def __init__(self, database: Database) -> None:
        assert database.is_sqlite and database.url.database
        self._database = database
        self._path = Path(database.url.database)
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def read(self) -> FileState:
        """The state now. Read it *before* the rows: what is written in between shows next time.

        A file that was put in the place of the old one (a backup brought back) is opened anew, by
        the database's own pool too.

        Raises:
            OSError: the file is gone.
            sqlite3.Error: it cannot be read.
        """
        status = self._path.stat()
        file = status.st_dev, status.st_ino
        if file != self._file:
            self.close()
            self._database.close()
            self._connection = sqlite3.connect(
                self._path,
                timeout=self._database.busy_timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
            self._file = file
        assert self._connection is not None
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return FileState(*file, version)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._file = None
        if connection is not None:
            connection.close()
