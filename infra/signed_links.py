"""Links that carry their own permission: what for, of what, and until when.

Whoever holds the link may do what it says, and nothing else: a link to a report opens no other
report, a link to pause does not approve. That it works once only, where it should, is up to the one
who acts on it: ``Link.id`` is its own for each link made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from itsdangerous import BadData, URLSafeSerializer

from infra.calls.record import utc_now

MAX_TOKEN_CHARACTERS = 4096
MAX_SECONDS = 366 * 86400.0


class LinkInvalid(Exception):
    """The link was not made here for this purpose, or was changed on its way."""


class LinkExpired(LinkInvalid):
    """The link was good, and its time is over."""


@dataclass(frozen=True)
class Link:
    """What a valid link permits."""

    subject: str
    expires: datetime


class LinkSigner:
    """Makes and checks links.

    Args:
        keys: as ``signing_keys`` gives them, the one that signs first; the others are still believed.
        now: the clock.

    Raises ValueError: there is no key.
    """

    def __init__(self, keys: Sequence[str], now: Callable[[], datetime] = utc_now) -> None:
        if not keys:
            raise ValueError("links cannot be signed without a key")
        self._keys = tuple(reversed(keys))  # the library signs with the last
        self._now = now

    def make(self, purpose: str, subject: str, seconds: float) -> str:
        """The link's token: letters, digits, ``-``, ``_`` and ``.``, fit for a path or a query.

        Args:
            purpose: what the link may do, e.g. ``report``, ``approve``.
            subject: what it may do it to, e.g. an object key, a rollout's id.
            seconds: how long it holds from now, at most a year.

        Raises:
            ValueError: the purpose or subject is empty or too long, or the time is none.
        """
        if not purpose or not subject or not 0 < seconds <= MAX_SECONDS:
            raise ValueError("a link has a purpose, a subject and a time of at most a year")
        # Whole seconds, rounded up: it holds at least as long as it was asked to.
        expires = math.ceil((self._now() + timedelta(seconds=seconds)).timestamp())
        token = str(self._serializer(purpose).dumps([subject, expires]))
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise ValueError(f"a link's subject of {len(subject)} characters is too long")
        return token

    def check(self, purpose: str, token: str) -> Link:
        """What the token permits. Raises LinkInvalid, or LinkExpired which is one."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise LinkInvalid("this link is not one of ours")
        try:
            subject, expires = self._serializer(purpose).loads(token)
            link = Link(subject, datetime.fromtimestamp(expires, UTC))
        except (BadData, ValueError, TypeError, OverflowError):
            raise LinkInvalid("this link is not one of ours, or was cut short") from None
        if link.expires <= self._now():
            raise LinkExpired(f"this link held until {link.expires:%Y-%m-%d %H:%M} UTC")
        return link

    def _serializer(self, purpose: str) -> URLSafeSerializer:
        """The purpose is part of the signing key, so a link for one is none for another."""
        return URLSafeSerializer(
            list(self._keys),
            salt=f"nightschool.link.{purpose}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
