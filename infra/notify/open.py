"""From ``[notify]`` to channels."""

from __future__ import annotations

from infra.notify.console import ConsoleChannel
from infra.notify.message import Channel
from infra.settings.operating import Notify


def channel_names(settings: Notify) -> tuple[str, ...]:
    """The names of ``open_channels``, for those who only write messages and carry none."""
    names = ["console"]
    if settings.slack_webhook_url is not None:
        names.append("slack")
    if settings.webhook_url is not None:
        names.append("webhook")
    return tuple(names)


def open_channels(settings: Notify) -> dict[str, Channel]:
    """The console always, ``slack`` and ``webhook`` where they are set up.

    Raises:
        ValueError: a webhook without a secret, or an address or secret that cannot be right.
    """
    channels: dict[str, Channel] = {"console": ConsoleChannel()}
    if settings.slack_webhook_url is not None:
        from infra.notify.slack import SlackChannel

        url = settings.slack_webhook_url.get_secret_value()
        if not url.startswith(("https://", "http://")):
            raise ValueError("[notify] slack_webhook_url begins with https://")
        channels["slack"] = SlackChannel(url, settings.timeout_seconds)
    if settings.webhook_url is not None:
        from infra.notify.webhook import WebhookChannel

        if settings.webhook_secret is None:
            raise ValueError(
                "[notify] webhook_url is set without webhook_secret: messages are always signed"
            )
        channels["webhook"] = WebhookChannel(
            settings.webhook_url,
            settings.webhook_secret.get_secret_value(),
            settings.timeout_seconds,
        )
    return channels
