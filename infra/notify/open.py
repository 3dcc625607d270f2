"""From ``[notify]`` to channels."""

from __future__ import annotations

from infra.database.open import Database
from infra.notify.block_kit import Links, no_links
from infra.notify.console import ConsoleChannel
from infra.notify.everywhere import AppriseChannel, channel_name
from infra.notify.message import Channel
from infra.settings.operating import Notify


def channel_names(settings: Notify) -> tuple[str, ...]:
    """The names of ``open_channels``, for those who only write messages and carry none."""
    names = ["console"]
    if settings.slack_webhook_url is not None or settings.slack_token is not None:
        names.append("slack")
    if settings.webhook_url is not None:
        names.append("webhook")
    names += [channel_name(url.get_secret_value()) for url in settings.apprise]
    return tuple(dict.fromkeys(names))


def open_channels(
    settings: Notify, database: Database, links: Links = no_links
) -> dict[str, Channel]:
    """The console always; ``slack``, ``webhook`` and ``apprise:...`` where they are set up.

    Args:
        database: where the threads of a chat are remembered.
        links: makes the addresses behind buttons.

    Raises:
        ValueError: a webhook without a secret, a bot without a channel, or an address or secret that
            cannot be right.
    """
    channels: dict[str, Channel] = {"console": ConsoleChannel()}
    slack = _open_slack(settings, database, links)
    if slack is not None:
        channels["slack"] = slack
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
    for secret in settings.apprise:
        url = secret.get_secret_value()
        channels[channel_name(url)] = AppriseChannel(url)
    return channels


def _open_slack(settings: Notify, database: Database, links: Links) -> Channel | None:
    webhook, token = settings.slack_webhook_url, settings.slack_token
    if webhook is None and token is None:
        return None
    if webhook is not None and token is not None:
        raise ValueError(
            "[notify] has both slack_webhook_url and slack_token: each message would come twice"
        )
    from infra.notify.slack import SlackBotChannel, SlackChannel
    from infra.notify.threads import Threads

    if webhook is not None:
        url = webhook.get_secret_value()
        if not url.startswith(("https://", "http://")):
            raise ValueError("[notify] slack_webhook_url begins with https://")
        return SlackChannel(url, settings.timeout_seconds, links)
    assert token is not None
    if settings.slack_channel is None:
        raise ValueError(
            "[notify] slack_token is set without slack_channel: the id of a channel, C..., "
            "as its details in Slack show it"
        )
    return SlackBotChannel(
        token.get_secret_value(),
        settings.slack_channel,
        Threads(database),
        api_url=settings.slack_api_url.rstrip("/") + "/",
        timeout_seconds=settings.timeout_seconds,
        links=links,
    )
