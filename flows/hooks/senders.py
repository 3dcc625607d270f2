"""Who signed a message: Standard Webhooks, GitHub's header, or a plain HMAC told by the settings.

What a signature covers decides what a repeat is. Standard Webhooks sign the message's id; the other
two sign the body alone (or a time and the body), so there what was signed is the id: whoever replays a
message under another delivery id sends the same message again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError, WebhookVerificationError

from infra.settings.operating import HookSender

TOLERANCE_SECONDS = 300
"""Of a timestamp, either way: what the Standard Webhooks library takes."""
MAX_MESSAGE_ID = 200
STANDARD_PREFIX = "whsec_"


class Refused(Exception):
    """A message that is not taken: the HTTP status, and the reason that the sender is told."""

    def __init__(self, status: int, reason: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Signed:
    """Who a message is from, and its id: the same id is the same message."""

    sender: str
    message_id: str


Secrets = Mapping[str, Sequence[str]]
"""Sender name to the secrets that are valid now."""


def identify(
    senders: Mapping[str, HookSender],
    secrets: Secrets,
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    *,
    named: str | None = None,
) -> Signed:
    """Who signed the message.

    Args:
        senders: how each signs; a sender without an entry signs by Standard Webhooks.
        headers: names in any case.
        now: seconds since 1970.
        named: only this sender is tried.

    Raises:
        Refused: 401, no known secret fits or the time is too far off; 400, the id is too long.
    """
    given = {name.lower(): value for name, value in headers.items()}
    chosen = secrets if named is None else {named: secrets.get(named, ())}
    for sender, known in chosen.items():
        how = senders.get(sender, _STANDARD)
        for secret in known:
            if how.scheme == "standard":
                message_id = _standard(secret, given, body)
            else:
                message_id = _hmac(
                    _GITHUB if how.scheme == "github" else how, secret, given, body, now
                )
            if message_id is None:
                continue
            if len(message_id) > MAX_MESSAGE_ID:
                raise Refused(400, f"webhook-id is longer than {MAX_MESSAGE_ID} characters")
            return Signed(sender, message_id)
    raise Refused(
        401,
        f"no known secret signed this message, or its time is over {TOLERANCE_SECONDS} seconds off",
    )


def usable_secret(how: HookSender, secret: str) -> bool:
    """Whether a secret can sign by the sender's scheme at all."""
    if how.scheme != "standard":
        return bool(secret)
    try:
        Webhook(secret)
    except (EmptyWebhookSecretError, ValueError):
        return False
    return True


_STANDARD = HookSender()
_GITHUB = HookSender(
    scheme="hmac", signature_header="x-hub-signature-256", prefix="sha256=", encoding="hex"
)


def _standard(secret: str, headers: Mapping[str, str], body: bytes) -> str | None:
    try:
        Webhook(secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, EmptyWebhookSecretError, ValueError):
        return None
    return headers["webhook-id"]


def _hmac(
    how: HookSender, secret: str, headers: Mapping[str, str], body: bytes, now: float
) -> str | None:
    signature = headers.get(how.signature_header.lower(), "")
    signed = body
    if how.timestamp_header is not None:
        seconds = headers.get(how.timestamp_header.lower(), "")
        if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 12):
            return None
        if abs(int(seconds) - now) > TOLERANCE_SECONDS:
            return None
        signed = seconds.encode() + b"." + body
    if not signature.startswith(how.prefix):
        return None
    told = signature.removeprefix(how.prefix)
    try:
        claimed = (
            bytes.fromhex(told) if how.encoding == "hex" else base64.b64decode(told, validate=True)
        )
    except (ValueError, binascii.Error):
        return None
    wanted = hmac.new(secret.encode(), signed, how.algorithm).digest()
    if not hmac.compare_digest(wanted, claimed):
        return None
    return f"body:{hashlib.sha256(signed).hexdigest()}"
