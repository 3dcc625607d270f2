"""API keys to tenants. Only hashes are known here; the keys themselves are never kept or logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.gateway.problems import unauthorized
from serving.registry.keys import hash_key

DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class Caller:
    tenant: str
    key_known: bool
    """Whether the key is one of ours, which must therefore never be forwarded."""


def bearer(headers: Mapping[str, str]) -> str | None:
    """The key in ``Authorization: Bearer`` or, as some clients send it, ``x-api-key``."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key") or None


def identify(headers: Mapping[str, str], tenants: Mapping[str, str], require: bool) -> Caller:
    """Who calls. Raises GatewayError 401 where a key is required and none that is known was sent.

    Args:
        tenants: key hash to tenant, without revoked keys.
    """
    key = bearer(headers)
    tenant = tenants.get(hash_key(key)) if key else None
    if tenant is not None:
        return Caller(tenant, key_known=True)
    if require:
        raise unauthorized()
    return Caller(DEFAULT_TENANT, key_known=False)
