"""What was asked for by webhook, kept until it has been done, so that nothing is done twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.database.tables import webhook_receipts
from infra.database.writes import insert_if_absent

MAX_KEPT = 100


@dataclass(frozen=True)
class Receipt:
    sender: str
    message_id: str
    hook: str
    body: Mapping[str, Any]
    state: str
    """kept (not done yet), started, failed"""
    flow_run_id: str | None
    detail: str
    received: datetime

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "hook": self.hook,
            "state": self.state,
            "flow_run_id": self.flow_run_id,
            "detail": self.detail,
        }


class Receipts:
    """The ``webhook_receipts`` table: one row per sender and message id, for ever."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, sender: str, message_id: str, hook: str, body: Mapping[str, Any]) -> Receipt:
        """Keep a message, or return what became of it if it came before."""
        row = {
            "sender": sender,
            "message_id": message_id,
            "hook": hook,
            "body": dict(body),
            "state": "kept",
            "flow_run_id": None,
            "detail": "",
            "received": utc_now(),
        }
        with self._database.begin() as connection:
            insert_if_absent(connection, webhook_receipts, row)
        receipt = self.find(sender, message_id)
        assert receipt is not None
        return receipt

    def find(self, sender: str, message_id: str) -> Receipt | None:
        table = webhook_receipts
        query = select(table).where(table.c.sender == sender, table.c.message_id == message_id)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Receipt(**row._mapping)

    def kept(self) -> list[Receipt]:
        """What waits to be done, oldest first; at most ``MAX_KEPT``."""
        table = webhook_receipts
        query = (
            select(table).where(table.c.state == "kept").order_by(table.c.received).limit(MAX_KEPT)
        )
        with self._database.read() as connection:
            return [Receipt(**row._mapping) for row in connection.execute(query)]

    def settle(self, receipt: Receipt, state: str, detail: str, run_id: str | None = None) -> None:
        """Record what became of a kept message; a message already settled stays as it is."""
        table = webhook_receipts
        statement = (
            update(table)
            .where(table.c.sender == receipt.sender, table.c.message_id == receipt.message_id)
            .where(table.c.state == "kept")
            .values(state=state, detail=detail[:1000], flow_run_id=run_id)
        )
        with self._database.begin() as connection:
            connection.execute(statement)
