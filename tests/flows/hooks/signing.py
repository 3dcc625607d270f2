"""Signed messages, and a receiver's surroundings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from standardwebhooks import Webhook

from flows.wiring import Context, open_context
from infra.settings.model import Settings
from tests.prefect_server import free_port

SECRET = "whsec_bmlnaHQgc2Nob29s"


def signed(body: bytes, message_id: str, *, secret: str = SECRET, age_seconds: float = 0) -> dict:
    time = datetime.now(UTC) - timedelta(seconds=age_seconds)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(time.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, time, body.decode()),
        "content-type": "application/json",
    }


@contextmanager
def context_with(settings: Settings, **hooks: Any) -> Iterator[Context]:
    hooks = {"secrets": {"ci": SECRET}, "keys": ["k" * 40], **hooks}
    changed = settings.model_dump() | {"hooks": hooks}
    if changed["prefect"]["api_url"] is None:
        changed["prefect"]["api_url"] = f"http://127.0.0.1:{free_port()}/api"
    with open_context(Settings.model_validate(changed)) as context:
        yield context
