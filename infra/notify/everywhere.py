"""Every other channel: mail, Teams, Discord, Matrix and a hundred more, by Apprise's addresses."""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime

from infra.notify.console import plain_text
from infra.notify.message import DeliveryFailed, Message

MAX_CHARACTERS = 3000


class AppriseChannel:
    """``Channel`` to one address of Apprise, which may hold secrets.

    The library says whether it was taken, and not why not: the reason is in its log. It tries once and
    waits a few seconds (``?cto=`` and ``?rto=`` of the address).

    Raises:
        ValueError: Apprise knows no such address.
    """

    def __init__(self, url: str) -> None:
        from apprise import Apprise, AppriseAsset  # slow to import, and rarely set up

        # Its log quotes addresses; what we say of a failure does not.
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        self._apprise = Apprise(asset=AppriseAsset(app_id="Night School", async_mode=False))
        if not self._apprise.add(url):
            scheme = url.partition("://")[0][:20]
            raise ValueError(
                f"[notify] apprise: an address that begins with {scheme!r} is not understood"
            )

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        if message.progress:
            return
        body = plain_text(message).partition("\n")[2][:MAX_CHARACTERS]
        if not self._apprise.notify(body=body, title=message.title[:200]):
            raise DeliveryFailed("the address in [notify] apprise did not take it")


def channel_name(url: str) -> str:
    """Of this address in the outbox, whatever else is in the list; says nothing of the address."""
    return f"apprise:{hashlib.sha256(url.encode()).hexdigest()[:12]}"
