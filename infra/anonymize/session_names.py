"""What a session is called in the log: the id that the caller gave, or a hash of it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:.-]{0,127}")
_USER = "user\0"


@dataclass(frozen=True)
class SessionNames:
    """How session ids become safe to log.

    Args:
        personal: whether a text holds personal data.
        hash_key: key of the hash; empty for a plain one.
    """

    personal: Callable[[str], bool]
    hash_key: bytes = b""

    def safe(self, given: str, tenant: str) -> str:
        """The id itself when it plainly is an identifier, else a hash of it."""
        if _PLAIN.fullmatch(given) and not self.personal(given):
            return given
        return self.hashed(given, tenant)

    def of_user(self, user: str, tenant: str) -> str:
        """The session of a request that names only OpenAI's ``user``."""
        return self.hashed(_USER + user, tenant)

    def known_as(self, given: str, tenant: str) -> frozenset[str]:
        """Every name under which a session or user of that id may stand in the log."""
        return frozenset({given, self.hashed(given, tenant), self.of_user(given, tenant)})

    def hashed(self, value: str, tenant: str) -> str:
        text = f"{len(tenant)}:{tenant}{value}".encode("utf-8", "surrogatepass")
        key = self.hash_key
        digest = hmac.new(key, text, hashlib.sha256) if key else hashlib.sha256(text)
        return f"s-{digest.hexdigest()[:32]}"
