"""What was asked for by webhook, kept until it has been done, so that nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select, tuple_, update

from infra.calls.record import new_id, utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import webhook_receipts as table
from infra.database.writes import insert_if_absent

MAX_KEPT = 100
MAX_BATCH = 1000
ACTS = frozenset({"retrain", "rollback"})
"""What is noted among the events: it changes what is learned or who answers."""


class Conflicting(Exception):
    """The same id came before with other content."""


@dataclass(frozen=True)
class Receipt:
    sender: str
    message_id: str
    hook: str
    body: Mapping[str, Any]
    state: str
    """kept (not done yet), started, done, ignored, failed"""
    flow_run_id: str | None
    detail: str
    received: datetime
    digest: str | None = None
    batch: str | None = None

    @property
    def key(self) -> str:
        """Names the message among those of all senders."""
        return f"{self.sender}:{self.message_id}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "sender": self.sender,
            "hook": self.hook,
            "state": self.state,
            "flow_run_id": self.flow_run_id,
            "detail": self.detail,
            "received": self.received.isoformat(),
        }


class Receipts:
    """The ``webhook_receipts`` table: one row per sender and message id, for ever."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(
        self,
        sender: str,
        message_id: str,
        hook: str,
        body: Mapping[str, Any],
        *,
        digest: str = "",
        state: str = "kept",
        detail: str = "",
    ) -> tuple[Receipt, bool]:
        """Keep a message, or return what became of it if it came before; whether it is new.

        Raises Conflicting: it came before with another digest or for another hook.
        """
        row = _row(sender, message_id, hook, body, digest, state, detail, utc_now())
        with self._database.begin() as connection:
            new = _insert(connection, row, f"webhook:{sender}")
        if new:
            return Receipt(**row), True
        found = self.find(sender, message_id)
        assert found is not None
        if found.hook != hook or (digest and found.digest and found.digest != digest):
            raise Conflicting(f"the id {message_id[:80]} came before with other content")
        return found, False

    @staticmethod
    def take_within(
        connection: Connection,
        sender: str,
        message_id: str,
        hook: str,
        body: Mapping[str, Any],
        *,
        actor: str,
        state: str = "kept",
        detail: str = "",
        now: datetime | None = None,
    ) -> bool:
        """Keep what we ask of ourselves, in the caller's transaction; whether it is new."""
        row = _row(sender, message_id, hook, body, "", state, detail, now or utc_now())
        return _insert(connection, row, actor)

    def find(self, sender: str, message_id: str) -> Receipt | None:
        found = self._read(table.c.sender == sender, table.c.message_id == message_id)
        return found[0] if found else None

    def named(self, message_id: str) -> list[Receipt]:
        """Of every sender that used this id."""
        return self._read(table.c.message_id == message_id)

    def kept(self, hook: str | None = None) -> list[Receipt]:
        """What waits to be done, oldest first; at most ``MAX_KEPT``."""
        return self._read(
            table.c.state == "kept", *([table.c.hook == hook] if hook is not None else [])
        )

    def count_kept(self) -> dict[str, tuple[int, datetime]]:
        """Hook to how many wait, and since when the oldest does."""
        query = (
            select(table.c.hook, func.count(), func.min(table.c.received))
            .where(table.c.state == "kept")
            .group_by(table.c.hook)
        )
        with self._database.read() as connection:
            return {hook: (count, since) for hook, count, since in connection.execute(query)}

    def settle(
        self, receipts: Sequence[Receipt], state: str, detail: str, run_id: str | None = None
    ) -> None:
        """Record what became of kept messages; one already settled stays as it is."""
        if receipts:
            these = _named((one.sender, one.message_id) for one in receipts)
            self._change(these, state=state, detail=detail[:1000], flow_run_id=run_id)

    def settle_batch(self, batch: str, detail: str) -> None:
        # The log has it now; here it would be a copy that nobody ever takes away.
        self._change(table.c.batch == batch, state="done", detail=detail, body={})

    def give_up(self, before: datetime, detail: str) -> int:
        """Settle as failed the runs asked for before then that still wait; how many.

        Feedback is late at no time: it waits for the store.
        """
        late = and_(table.c.received < before, table.c.hook != "feedback")
        return self._change(late, state="failed", detail=detail)

    def batches(self) -> dict[str, list[Receipt]]:
        """Kept feedback in batches, each closed for ever once it was made: what a kill left, and a new one.

        A batch keeps its rows whoever asks, so storing it again writes the same object.
        """
        free = (
            select(table.c.sender, table.c.message_id)
            .where(table.c.state == "kept", table.c.hook == "feedback", table.c.batch.is_(None))
            .order_by(table.c.received)
            .limit(MAX_BATCH)
        )
        batch = new_id()
        with self._database.begin() as connection:
            rows = connection.execute(free).all()
            for start in range(0, len(rows), MAX_KEPT):
                some = rows[start : start + MAX_KEPT]
                these = _named((row.sender, row.message_id) for row in some)
                connection.execute(
                    update(table).where(these, table.c.batch.is_(None)).values(batch=batch)
                )
            query = (
                select(table)
                .where(table.c.state == "kept", table.c.batch.is_not(None))
                .order_by(table.c.batch, table.c.received, table.c.sender, table.c.message_id)
                .limit(4 * MAX_BATCH)
            )
            found: dict[str, list[Receipt]] = {}
            for row in connection.execute(query):
                found.setdefault(row.batch, []).append(Receipt(**row._mapping))
        if sum(map(len, found.values())) >= 4 * MAX_BATCH and len(found) > 1:
            found.popitem()  # perhaps cut short
        return found

    def _read(self, *where: Any) -> list[Receipt]:
        query = select(table).where(*where).order_by(table.c.received).limit(MAX_KEPT)
        with self._database.read() as connection:
            return [Receipt(**row._mapping) for row in connection.execute(query)]

    def _change(self, *where: Any, **values: Any) -> int:
        statement = update(table).where(*where, table.c.state == "kept").values(**values)
        with self._database.begin() as connection:
            return connection.execute(statement).rowcount


def _named(messages: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    """The rows of these messages, each by its sender and id."""
    return tuple_(table.c.sender, table.c.message_id).in_(list(messages))


def _row(
    sender: str,
    message_id: str,
    hook: str,
    body: Mapping[str, Any],
    digest: str,
    state: str,
    detail: str,
    now: datetime,
) -> dict[str, Any]:
    return {
        "sender": sender,
        "message_id": message_id,
        "hook": hook,
        "body": dict(body),
        "state": state,
        "flow_run_id": None,
        "detail": detail,
        "received": now,
        "digest": digest or None,
        "batch": None,
    }


def _insert(connection: Connection, row: Mapping[str, Any], actor: str) -> bool:
    """With the event of what changes who learns or who answers; False where it came before."""
    new = insert_if_absent(connection, table, dict(row))
    if new and row["hook"] in ACTS and row["state"] == "kept":
        body = row["body"]
        record_event(
            connection,
            actor=actor[:100],
            what=f"{row['hook']}.asked",
            subject=body.get("task") or "all",
            why=str(body.get("reason") or "asked for by webhook"),
            evidence={"message": row["message_id"]},
            time=row["received"],
        )
    return new
