"""Where the threads of a chat begin, and what has been said in each: kept, so that a restart goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import delete, select, update

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.database.tables import message_threads
from infra.database.writes import insert_if_absent

MAX_STEPS = 50
"""Of a thread, newest last, kept for its first message."""


@dataclass(frozen=True)
class Thread:
    channel: str
    """The chat's own id of the conversation."""
    name: str
    place: str
    """Of its first message, as the chat names it."""
    keys: tuple[str, ...]
    """Of the messages that its first message has taken in, that message's own first."""
    steps: tuple[str, ...]

    def with_step(self, key: str, title: str) -> Thread:
        keys = (self.keys[0], *(*self.keys[1:], key)[-MAX_STEPS:])
        return replace(self, keys=keys, steps=(*self.steps, title)[-MAX_STEPS:])


class Threads:
    """The ``message_threads`` table. One deliverer at a time is at a thread: the outbox sees to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, channel: str, name: str) -> Thread | None:
        table = message_threads
        query = select(table).where(table.c.channel == channel, table.c.name == name)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return Thread(row.channel, row.name, row.place, tuple(row.keys), tuple(row.steps))

    def begin(self, channel: str, name: str, place: str, key: str, title: str) -> None:
        row = {
            "channel": channel,
            "name": name,
            "place": place,
            "keys": [key],
            "steps": [title],
            "updated": utc_now(),
        }
        with self._database.begin() as connection:
            insert_if_absent(connection, message_threads, row)

    def save(self, thread: Thread) -> None:
        table = message_threads
        with self._database.begin() as connection:
            connection.execute(
                update(table)
                .where(table.c.channel == thread.channel, table.c.name == thread.name)
                .values(keys=list(thread.keys), steps=list(thread.steps), updated=utc_now())
            )

    def forget(self, thread: Thread) -> None:
        table = message_threads
        with self._database.begin() as connection:
            connection.execute(
                delete(table).where(
                    table.c.channel == thread.channel,
                    table.c.name == thread.name,
                    table.c.place == thread.place,
                )
            )
