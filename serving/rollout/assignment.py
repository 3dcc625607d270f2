"""Which side of a rollout a session stands on: a salted hash, the same in every process.

The gateway and the controller share this module, so a session's arm can be recomputed from the log.
Buckets are nested: a session is in the canary arm when its bucket lies below the weight, hence
raising the weight only adds sessions and never moves one back. Each rollout has its own salt, so the
sessions that one rollout exposes are no more likely to be exposed by the next.
"""

from __future__ import annotations

import hashlib
import secrets

from infra.calls.record import Arm

_BUCKETS = 1 << 53  # every bucket is exactly representable as a float below 1


def bucket(salt: str, session: str) -> float:
    """The session's place in [0, 1), uniform over sessions and fixed for one salt."""
    # The length prefix keeps ("ab", "c") and ("a", "bc") apart.
    named = f"{len(salt)}:{salt}{session}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(named, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / _BUCKETS


def arm(salt: str, session: str, weight: float) -> Arm:
    """The session's arm while a share ``weight`` (0 to 1) of the sessions is in the canary."""
    return "canary" if bucket(salt, session) < weight else "champion"


def new_salt() -> str:
    """A fresh random salt, 32 hex characters: one per rollout."""
    return secrets.token_hex(16)
