"""The secrets of webhook senders in the database: sealed, two valid at once, never shown again.

An HMAC is checked with the secret itself, so a hash of it would not do: it is kept encrypted under a
key that the database does not hold (``[hooks] keys``). Each sender has two slots and no more; a new
secret takes the free one, and what it takes over from ends after the overlap.
"""

from __future__ import annotations

import base64
import json
import secrets as random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, delete, select

from flows.hooks.senders import STANDARD_PREFIX
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import webhook_secrets as table
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.settings.operating import Hooks

LIVE_SECONDS = 1.0
"""How old what is known of the secrets may be: a revoked one is refused within it."""
SLOTS = (0, 1)


class SecretError(Exception):
    """The secrets cannot be changed so; the message says why and what to do."""


@dataclass(frozen=True)
class Known:
    """What may be told of a secret."""

    sender: str
    id: str
    created: datetime
    expires: datetime | None


class SenderSecrets:
    """The ``webhook_secrets`` table.

    Args:
        keys: as ``signing_keys`` gives them.
    """

    def __init__(self, database: Database, keys: Sequence[str]) -> None:
        self._database = database
        self._box = MultiFernet([Fernet(_sealing_key(key)) for key in keys])

    def add(self, sender: str, *, standard: bool, actor: str) -> str:
        """A sender's first secret; returns it, the only time that it can be seen.

        Raises SecretError: it has one already.
        """
        with self._database.begin() as connection:
            if self._rows(connection, sender):
                raise SecretError(f"{sender} has a secret already: rotate it, or revoke it first")
            return self._store(connection, sender, 0, _made(standard), actor, "added")

    def rotate(
        self,
        sender: str,
        *,
        standard: bool,
        overlap_seconds: float,
        actor: str,
    ) -> str:
        """A second secret beside the one there is, which ends after the overlap; returns the new one.

        Raises SecretError: there is none yet, or two are valid already.
        """
        ends = utc_now() + timedelta(seconds=overlap_seconds)
        with self._database.begin() as connection:
            rows = self._rows(connection, sender)
            if not rows:
                raise SecretError(
                    f"{sender} has no secret yet: nightschool hooks secrets add {sender}"
                )
            if len(rows) > 1:
                raise SecretError(
                    f"two secrets of {sender} are valid: revoke one, or wait until {rows[0].id} ends"
                )
            (old,) = rows
            changed = compare_and_swap(
                connection,
                table,
                {"sender": sender, "slot": old.slot, "id": old.id, "expires": None},
                {"expires": ends},
            )
            if not changed:
                raise SecretError(
                    f"the secrets of {sender} were changed at the same time: look again"
                )
            return self._store(connection, sender, 1 - old.slot, _made(standard), actor, "rotated")

    def revoke(self, sender: str, secret_id: str, *, actor: str, why: str) -> None:
        """End a secret at once. Raises SecretError: the sender has none of that id."""
        with self._database.begin() as connection:
            gone = connection.execute(
                delete(table).where(table.c.sender == sender, table.c.id == secret_id)
            ).rowcount
            if not gone:
                raise SecretError(
                    f"{sender} has no secret {secret_id}: nightschool hooks secrets list"
                )
            # The one that was to end takes over again only if somebody says so: it still ends.
            record_event(
                connection,
                actor=actor,
                what="webhook_secret.revoked",
                subject=sender,
                why=why,
                previous={"id": secret_id},
            )

    def list(self) -> list[Known]:
        """Those that are valid, by sender; the older first."""
        query = select(table).order_by(table.c.sender, table.c.created)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Known(row.sender, row.id, row.created, row.expires)
            for row in rows
            if row.expires is None or row.expires > utc_now()
        ]

    def live(self) -> dict[str, tuple[str, ...]]:
        """Sender to its valid secrets. Raises SecretError: the keys do not open one."""
        with self._database.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.sender, table.c.slot)).all()
        found: dict[str, tuple[str, ...]] = {}
        for row in rows:
            if row.expires is None or row.expires > utc_now():
                found[row.sender] = (*found.get(row.sender, ()), self._open(row))
        return found

    def _open(self, row: Any) -> str:
        try:
            sender, secret = json.loads(self._box.decrypt(row.sealed.encode()))
        except (InvalidToken, ValueError):
            sender, secret = None, ""
        # A sealed secret belongs to the sender that it was sealed for.
        if sender != row.sender:
            raise SecretError(
                f"the secret {row.id} of {row.sender} was sealed under another key: give back that "
                "key in [hooks] keys, or revoke the secret and add a new one"
            )
        return str(secret)

    def _store(
        self, connection: Connection, sender: str, slot: int, secret: str, actor: str, done: str
    ) -> str:
        row = {
            "sender": sender,
            "slot": slot,
            "id": random.token_hex(6),
            "sealed": self._box.encrypt(json.dumps([sender, secret]).encode()).decode(),
            "created": utc_now(),
            "expires": None,
        }
        if not insert_if_absent(connection, table, row):
            raise SecretError(f"the secrets of {sender} were changed at the same time: look again")
        record_event(
            connection,
            actor=actor,
            what=f"webhook_secret.{done}",
            subject=sender,
            why=f"a secret of the webhook sender {sender}",
            current={"id": row["id"]},
        )
        return secret

    @staticmethod
    def _rows(connection: Connection, sender: str) -> Sequence[Any]:
        """The sender's valid secrets, the older first; what has ended is taken away."""
        connection.execute(
            delete(table).where(table.c.sender == sender, table.c.expires <= utc_now())
        )
        query = select(table).where(table.c.sender == sender).order_by(table.c.created)
        return connection.execute(query).all()


class LiveSecrets:
    """The valid secrets of settings and database together, not older than ``LIVE_SECONDS``."""

    def __init__(self, settings: Hooks, stored: SenderSecrets) -> None:
        self._stored = stored
        self._fixed = {
            name: tuple(secret.get_secret_value() for secret in several)
            for name, several in settings.secrets.items()
        }
        self._at = -LIVE_SECONDS
        self._known: dict[str, tuple[str, ...]] = {}

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self._at < LIVE_SECONDS

    def known(self) -> dict[str, tuple[str, ...]]:
        """As read last, from memory."""
        return self._known

    def read(self) -> None:
        """From the database. Raises SecretError, and what the database raises."""
        at = time.monotonic()
        found = dict(self._fixed)
        for sender, several in self._stored.live().items():
            found[sender] = (*found.get(sender, ()), *several)
        self._known, self._at = found, at


def _made(standard: bool) -> str:
    if standard:
        return STANDARD_PREFIX + base64.b64encode(random.token_bytes(32)).decode()
    return random.token_urlsafe(32)


def _sealing_key(key: str) -> bytes:
    derived = HKDF(SHA256(), 32, salt=None, info=b"nightschool webhook secrets").derive(
        key.encode()
    )
    return base64.urlsafe_b64encode(derived)
