"""API keys: shown once when made, stored as a hash, scoped to one tenant, one role and its limits."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, insert, select

from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import api_keys
from infra.database.writes import compare_and_swap
from serving.registry.errors import KeyChanged, UnknownKey

Role = Literal["call", "operate", "admin"]
PREFIX = "ns_"
LIMITS = ("requests_per_minute", "tokens_per_minute", "expires")
MAX_PER_MINUTE = 1_000_000_000
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
    requests_per_minute: int | None
    """At each gateway; None: as many as come."""
    tokens_per_minute: int | None
    expires: datetime | None

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
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    expires: datetime | None = None,
    actor: str = "operator",
    now: datetime | None = None,
) -> str:
    """Make a key and return it: the only time that it can be seen.

    Raises ValueError for an unknown role, an empty tenant, a name of more than 100 characters, or a
    limit that is none.
    """
    if role not in get_args(Role):
        raise ValueError(f"a key's role is one of {', '.join(get_args(Role))}, not {role!r}")
    if not tenant.strip() or len(tenant) > 100:
        raise ValueError("a key's tenant has 1 to 100 characters")
    if len(label) > 100:
        raise ValueError("a key's label has at most 100 characters")
    now = now or utc_now()
    limits = _checked(
        {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "expires": expires,
        },
        now,
    )
    plaintext = PREFIX + secrets.token_urlsafe(32)
    hashed = hash_key(plaintext)
    with database.begin() as connection:
        connection.execute(
            insert(api_keys).values(
                hash=hashed,
                tenant=tenant,
                role=role,
                label=label,
                created=now,
                revoked=None,
                **limits,
            )
        )
        record_event(
            connection,
            actor=actor,
            what="key.created",
            subject=hashed[:SHOWN],
            why=f"key {label!r} for tenant {tenant}",
            current={"tenant": tenant, "role": role, "label": label, **_told(limits, given=True)},
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
    """The live key, or None when it is unknown, revoked or over."""
    query = select(api_keys).where(
        api_keys.c.hash == hash_key(plaintext), api_keys.c.revoked.is_(None)
    )
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    key = ApiKey(**row._mapping) if row else None
    over = key is not None and key.expires is not None and key.expires <= utc_now()
    return None if over else key


def limit_key(
    database: Database,
    key_id: str,
    changes: Mapping[str, Any],
    *,
    actor: str = "operator",
    why: str = "limits changed",
    now: datetime | None = None,
) -> ApiKey:
    """Change limits of the key whose hash begins with ``key_id``.

    Args:
        changes: any of requests_per_minute, tokens_per_minute and expires; None takes a limit away.

    Raises:
        UnknownKey: none or more than one begins so.
        KeyChanged: somebody else changed it at the same time.
        ValueError: a limit that is none.
    """
    now = now or utc_now()
    wanted = _checked(changes, now)
    with database.begin() as connection:
        key = _find(connection, key_id)
        before = {name: getattr(key, name) for name in wanted}
        if wanted != before:
            if not compare_and_swap(connection, api_keys, {"hash": key.hash, **before}, wanted):
                raise KeyChanged(f"key {key.id} was changed at the same time: look, and try again")
            record_event(
                connection,
                actor=actor,
                what="key.limited",
                subject=key.id,
                why=why,
                previous=_told(before),
                current=_told(wanted),
                time=now,
            )
        row = connection.execute(select(api_keys).where(api_keys.c.hash == key.hash)).one()
    return ApiKey(**row._mapping)


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
    with database.begin() as connection:
        key = _find(connection, key_id)
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


def _find(connection: Connection, key_id: str) -> ApiKey:
    wanted = key_id.strip().lower()
    if len(wanted) < 8 or any(letter not in "0123456789abcdef" for letter in wanted):
        raise UnknownKey("name a key by the first 8 or more characters of its id")
    query = select(api_keys).where(api_keys.c.hash.startswith(wanted)).limit(2)
    rows = connection.execute(query).all()
    if len(rows) != 1:
        raise UnknownKey(f"{'no key' if not rows else 'more than one key'} begins with {wanted}")
    return ApiKey(**rows[0]._mapping)


def _checked(limits: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The limits as they are stored. Raises ValueError for what cannot be one."""
    if not limits.keys() <= set(LIMITS):
        raise ValueError(f"a key's limits are {', '.join(LIMITS)}")
    for name in LIMITS[:2]:
        value = limits.get(name)
        if value is not None and not 1 <= value <= MAX_PER_MINUTE:
            raise ValueError(f"a key's {name} is a number from 1 to {MAX_PER_MINUTE}")
    expires = limits.get("expires")
    if expires is None:
        return dict(limits)
    if expires.tzinfo is None:
        raise ValueError("a key's expiry needs a time zone, such as 2030-01-31T12:00:00Z")
    if expires <= now:
        raise ValueError("a key's expiry lies in the future")
    return {**limits, "expires": expires.astimezone(UTC)}


def _told(limits: Mapping[str, Any], *, given: bool = False) -> dict[str, Any]:
    """The limits as an event tells of them. ``given``: only those that there are."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in limits.items()
        if value is not None or not given
    }
