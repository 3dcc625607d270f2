"""API keys: shown once when made, stored as a hash, scoped to one tenant and one role."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import insert, select

from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import api_keys
from infra.database.writes import compare_and_swap
from serving.registry.errors import UnknownKey

Role = Literal["call", "operate", "admin"]
PREFIX = "ns_"
SHOWN = 12
"""Characters of the hash that name a key in lists and events."""


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key. ``hash``: sha256 of the key, 64 hex characters."""

    hash: str
    tenant: str
    role: Role
    label: str
    created: datetime
    revoked: datetime | None

    @property
    def id(self) -> str:
        return self.hash[:SHOWN]


def hash_key(plaintext: str) -> str:
    """sha256, 64 hex characters. A key is 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()


def create_key(
    database: Database,
    tenant: str,
    role: Role,
    label: str,
    *,
    actor: str = "operator",
    now: datetime | None = None,
) -> str:
    """Make a key and return it: the only time that it can be seen.

    Raises ValueError for an unknown role, an empty tenant, or a name of more than 100 characters.
    """
    if role not in get_args(Role):
        raise ValueError(f"a key's role is one of {', '.join(get_args(Role))}, not {role!r}")
    if not tenant.strip() or len(tenant) > 100:
        raise ValueError("a key's tenant has 1 to 100 characters")
    if len(label) > 100:
        raise ValueError("a key's label has at most 100 characters")
    now = now or utc_now()
    plaintext = PREFIX + secrets.token_urlsafe(32)
    hashed = hash_key(plaintext)
    with database.begin() as connection:
        connection.execute(
            insert(api_keys).values(
                hash=hashed, tenant=tenant, role=role, label=label, created=now, revoked=None
            )
        )
        record_event(
            connection,
            actor=actor,
            what="key.created",
            subject=hashed[:SHOWN],
            why=f"key {label!r} for tenant {tenant}",
            current={"tenant": tenant, "role": role, "label": label},
            time=now,
        )
    return plaintext


def list_keys(database: Database, tenant: str | None = None) -> list[ApiKey]:
    """Oldest first, the revoked ones too."""
    query = select(api_keys).order_by(api_keys.c.created, api_keys.c.hash)
    if tenant is not None:
        query = query.where(api_keys.c.tenant == tenant)
    with database.read() as connection:
        return [ApiKey(**row._mapping) for row in connection.execute(query)]


def find_key(database: Database, plaintext: str) -> ApiKey | None:
    """The live key, or None when it is unknown or revoked."""
    query = select(api_keys).where(
        api_keys.c.hash == hash_key(plaintext), api_keys.c.revoked.is_(None)
    )
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    return ApiKey(**row._mapping) if row else None


def revoke_key(
    database: Database,
    key_id: str,
    *,
    actor: str = "operator",
    why: str = "revoked",
    now: datetime | None = None,
) -> ApiKey:
    """Revoke the key whose hash begins with ``key_id`` (8 characters at least); again is no error.

    Raises UnknownKey when none or more than one begins so.
    """
    now = now or utc_now()
    wanted = key_id.strip().lower()
    if len(wanted) < 8 or any(letter not in "0123456789abcdef" for letter in wanted):
        raise UnknownKey("name a key by the first 8 or more characters of its id")
    with database.begin() as connection:
        rows = connection.execute(
            select(api_keys).where(api_keys.c.hash.startswith(wanted)).limit(2)
        ).all()
        if len(rows) != 1:
            raise UnknownKey(
                f"{'no key' if not rows else 'more than one key'} begins with {wanted}"
            )
        key = ApiKey(**rows[0]._mapping)
        if compare_and_swap(
            connection, api_keys, {"hash": key.hash, "revoked": None}, {"revoked": now}
        ):
            record_event(
                connection,
                actor=actor,
                what="key.revoked",
                subject=key.id,
                why=why,
                previous={"tenant": key.tenant, "role": key.role, "label": key.label},
                time=now,
            )
        row = connection.execute(select(api_keys).where(api_keys.c.hash == key.hash)).one()
    return ApiKey(**row._mapping)
