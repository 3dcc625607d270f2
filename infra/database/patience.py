"""A bound on the wait for PostgreSQL's answers, for those who must go on without it.

A server that was stopped, or a machine that vanished behind a switch, neither answers nor closes the
connection: TCP alone waits for hours. ``statement_timeout`` does not help, since the server keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("database_deadline", default=None)


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """Every wait for PostgreSQL in this block, by this thread, ends so many seconds from now.

    What has no answer by then raises ``OperationalError`` and loses its connection, whose state
    nobody knows. The wait for a *new* connection has a bound of its own, ``connect_timeout``. No
    effect on SQLite, which waits for locks only.
    """
    before = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(before)


def seconds_left() -> float | None:
    """Of the innermost ``answers_within``, never negative; None: as long as it takes."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
