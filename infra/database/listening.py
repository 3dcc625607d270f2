"""Hears of changes from PostgreSQL as they are committed (LISTEN/NOTIFY).

Migration 0002 makes the tables themselves announce their changes, in the writer's transaction, so it
does not matter who writes. A notice carries nothing: it says that it is time to read. Whoever listens
must also read now and then without one, because nobody hears while the connection is away.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import threading
import time
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from infra.database.connection import PatientConnection
from infra.database.patience import answers_within

logger = logging.getLogger(__name__)

CHANNEL = "nightschool_routes"
"""What the triggers notify, see migration 0002."""
CONNECT_SECONDS = 5
FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 10.0


class Listener:
    """One connection that listens. ``wait`` is for one thread, ``wake`` and ``close`` for any.

    Args:
        url: of a PostgreSQL database.
    """

    def __init__(self, url: URL, channel: str = CHANNEL) -> None:
        # No password on a command line here: libpq takes it from the string.
        self._target = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._channel = channel
        self._connection: psycopg.Connection[Any] | None = None
        self._retry_at = 0.0
        self._backoff = FIRST_BACKOFF_SECONDS
        self._wakes, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._closed = threading.Event()

    @property
    def listening(self) -> bool:
        return self._connection is not None

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for a notice, a wake-up or the end of the time; True when there was a notice.

        Also True right after a connection was made: what happened before it was not heard. Never
        raises: without a connection only the time ends the wait, and a new one is tried for in
        growing intervals.
        """
        end = time.monotonic() + timeout_seconds
        if self._connection is None and time.monotonic() >= self._retry_at and self._connect():
            return True
        connection = self._connection
        sockets: list[Any] = [self._woken]
        if connection is not None:
            try:
                sockets.append(connection.fileno())
            except psycopg.Error as error:
                self._lose(error)
        readable, _, _ = select.select(sockets, [], [], max(0.0, end - time.monotonic()))
        if self._woken in readable:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        if connection is None or len(readable) == (self._woken in readable):
            return False
        try:
            # All that is there: a burst of notices is one change to whoever reads afterwards.
            return any(True for _ in connection.notifies(timeout=0))
        except (psycopg.Error, OSError) as error:
            self._lose(error)
            return False

    def wake(self) -> None:
        """End the present wait, or the next one."""
        with contextlib.suppress(OSError):
            self._wakes.send(b"x")

    def close(self) -> None:
        """Call it when nobody waits any more."""
        self._closed.set()
        self._drop()
        self._wakes.close()
        self._woken.close()

    def _connect(self) -> bool:
        try:
            self._connection = PatientConnection.connect(
                self._target,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                application_name="nightschool listener",
            )
            with answers_within(CONNECT_SECONDS):
                self._connection.execute(f'LISTEN "{self._channel}"'.encode())
        except (psycopg.Error, OSError) as error:
            self._lose(error)
            return False
        self._backoff = FIRST_BACKOFF_SECONDS
        logger.info("hearing of changes from the database")
        return True

    def _lose(self, error: Exception) -> None:
        if self._connection is not None or self._backoff == FIRST_BACKOFF_SECONDS:
            logger.warning(
                "changes in the database are not heard of (%s): polling only", type(error).__name__
            )
        self._drop()
        # Spread out, so that all gateways do not come back in the same moment.
        self._retry_at = time.monotonic() + self._backoff * random.uniform(0.5, 1.0)
        self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()
