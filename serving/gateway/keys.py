"""Who calls, and what a caller may do. Only hashes of keys are known here; keys are never kept or logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra.calls.record import utc_now
from serving.gateway.problems import forbidden, unauthorized
from serving.gateway.routes import KeyRoute
from serving.registry.keys import hash_key

DEFAULT_TENANT = "default"
RANK = {"call": 0, "operate": 1, "admin": 2}
"""Each role may do what the ones before it may. A role of a later release counts as call."""


@dataclass(frozen=True)
class Caller:
    tenant: str
    key_known: bool
    """Whether the key is one of ours, which must therefore never be forwarded."""
    key: KeyRoute | None = None
    key_hash: str = ""

    @property
    def role(self) -> str:
        return self.key.role if self.key is not None else "call"

    def may(self, role: str) -> bool:
        """Whether the caller has at least that role."""
        return RANK.get(self.role, 0) >= RANK[role]


def bearer(headers: Mapping[str, str]) -> str | None:
    """The key in ``Authorization: Bearer`` or, as some clients send it, ``x-api-key``."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key") or None


def identify(headers: Mapping[str, str], keys: Mapping[str, KeyRoute], require: bool) -> Caller:
    """Who calls. Raises GatewayError 401 where a key is required and none that holds was sent.

    A key is looked up by its hash, so how long that takes says nothing about the keys there are.

    Args:
        keys: key hash to what is known of it, without revoked keys.
    """
    key = bearer(headers)
    if key:
        hashed = hash_key(key) if keys else ""
        found = keys.get(hashed)
        if found is not None:
            if found.expires is None or utc_now() < found.expires:
                return Caller(found.tenant, True, found, hashed)
            # Where no key is needed it is still ours: not to be forwarded, and good for nothing.
            raise unauthorized("the API key has expired: ask for a new one", "expired_api_key")
    if require:
        raise unauthorized()
    return Caller(DEFAULT_TENANT, key_known=False)


def require_role(caller: Caller, role: str, what: str) -> None:
    """Raises GatewayError: 401 without a key, 403 with one whose role is not enough."""
    if caller.may(role):
        return
    if not caller.key_known:
        raise unauthorized()
    raise forbidden(f"{what} needs a key with the role {role}; this one has {caller.role}")
