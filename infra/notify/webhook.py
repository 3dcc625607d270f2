"""A generic webhook, signed by the Standard Webhooks scheme (standardwebhooks.com)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from standardwebhooks.webhooks import Webhook

from infra.notify.http import retry_after
from infra.notify.message import DeliveryFailed, Message

MAX_ANSWER_BYTES = 64 << 10


class WebhookChannel:
    """``Channel`` that posts ``{"type", "timestamp", "data"}``.

    The message's key is the ``webhook-id``: a receiver that has seen it takes it for the same one.

    Raises:
        ValueError: the address is not http or https, or the secret is not ``whsec_`` and base64.
    """

    def __init__(self, url: str, secret: str, timeout_seconds: float = 10) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("[notify] webhook_url begins with http:// or https://")
        try:
            self._signer = Webhook(secret)
        except Exception:  # noqa: BLE001 - the library's errors quote the secret
            raise ValueError(
                "[notify] webhook_secret is not a Standard Webhooks secret: whsec_ and base64"
            ) from None
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._opener = build_opener(_NoRedirects)

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        now = datetime.now(UTC)
        body = json.dumps(
            {"type": message.topic, "timestamp": now.isoformat(), "data": message.to_dict()},
            ensure_ascii=False,
        )
        # A header takes printable ASCII only; a key may be any text.
        identity = quote(message.key, safe="/:@+,")
        request = Request(
            self._url,
            body.encode(),
            {
                "content-type": "application/json",
                "user-agent": "nightschool",
                "webhook-id": identity,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": self._signer.sign(identity, now, body),
            },
        )
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as response:
                response.read(MAX_ANSWER_BYTES)
        except HTTPError as error:
            with error:
                _refused(error)
        except (OSError, HTTPException) as error:
            raise DeliveryFailed(
                f"the webhook cannot be reached ({type(error).__name__})"
            ) from None


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """A signed message goes where it was addressed to, nowhere else."""


def _refused(error: HTTPError) -> None:
    if error.code in (429, 503) and error.headers.get("retry-after"):
        wish = retry_after(dict(error.headers.items()))
        raise DeliveryFailed("the webhook asks to wait", retry_after_seconds=wish)
    raise DeliveryFailed(
        f"the webhook refused with status {error.code}: check [notify] webhook_url",
        permanent=error.code in (400, 410, 413, 422),
    )
