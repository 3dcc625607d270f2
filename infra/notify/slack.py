"""Slack: by an incoming webhook, which only ever adds, or as a bot, which keeps threads and edits.

Neither retries: the outbox does, which survives a restart and knows the order. A message's key travels
in the metadata of what a bot posts, so that after a try whose end nobody knows the bot finds what it
said, and does not say it again. An incoming webhook cannot look: there a message whose answer was lost
comes twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from urllib.error import URLError

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.slack_response import SlackResponse
from slack_sdk.webhook import WebhookClient

from infra.notify.block_kit import Links, blocks, fallback, no_links
from infra.notify.http import retry_after
from infra.notify.message import DeliveryFailed, Message
from infra.notify.threads import Thread, Threads

logger = logging.getLogger(__name__)

EVENT_TYPE = "nightschool_message"
PAGE_MESSAGES = 200
MAX_PAGES = 5
CLOCK_SECONDS = 300
"""How far Slack's clock and ours may be apart."""
NEVER = frozenset(
    {
        "invalid_blocks",
        "invalid_blocks_format",
        "msg_too_long",
        "msg_blocks_too_long",
        "no_text",
        "invalid_metadata_format",
        "invalid_metadata_schema",
        "metadata_too_large",
        "invalid_arguments",
    }
)
"""What Slack says of a payload that it does not understand, and will say again."""
GONE = frozenset({"message_not_found", "thread_not_found", "cant_reply_to_message"})
CLOSED = frozenset({"cant_update_message", "edit_window_closed", "is_inactive"})
ADVICE = {
    "not_in_channel": "invite the app to the channel",
    "channel_not_found": "check [notify] slack_channel, and invite the app if it is private",
    "is_archived": "the channel is archived: choose another [notify] slack_channel",
    "missing_scope": "the app needs the scopes chat:write and channels:history (groups:history)",
}


class SlackChannel:
    """``Channel`` to one Slack incoming webhook, whose address is the secret."""

    def __init__(self, url: str, timeout_seconds: float = 10, links: Links = no_links) -> None:
        self._client = WebhookClient(url, timeout=max(1, int(timeout_seconds)), retry_handlers=[])
        self._links = links

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        if message.progress:
            return
        try:
            response = self._client.send(
                text=fallback(message), blocks=blocks(message, self._links)
            )
        except (OSError, URLError, SlackClientError) as error:
            raise DeliveryFailed(f"Slack cannot be reached ({type(error).__name__})") from None
        if response.status_code == 200:
            return
        if response.status_code == 429:
            wish = retry_after(response.headers)
            raise DeliveryFailed("Slack asks to slow down", retry_after_seconds=wish)
        raise DeliveryFailed(
            f"Slack refused with status {response.status_code}: "
            "check [notify] slack_webhook_url and the channel it belongs to",
            # Slack says so of a payload it does not understand, and will say it again.
            permanent=response.status_code == 400,
        )


class SlackBotChannel:
    """``Channel`` to one Slack conversation as a bot: a thread per rollout, its head kept up to date.

    Args:
        channel: the conversation's id (``C...``); a name is not enough to look or to edit.
        threads: where the heads of the threads are remembered.
        api_url: of the Web API, ending in a slash.
    """

    def __init__(
        self,
        token: str,
        channel: str,
        threads: Threads,
        *,
        api_url: str = WebClient.BASE_URL,
        timeout_seconds: float = 10,
        links: Links = no_links,
    ) -> None:
        self._client = WebClient(
            token, api_url, timeout=max(1, int(timeout_seconds)), retry_handlers=[]
        )
        self._channel, self._threads, self._links = channel, threads, links

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        thread = self._threads.find(self._channel, message.thread) if message.thread else None
        if thread is not None and message.key in thread.keys:
            # Said, and the head knows it; only our note of the delivery was lost.
            return
        if thread is None:
            self._begin(message, tried_since)
            return
        try:
            if not message.progress:
                self._post(message, thread, tried_since)
            self._edit(message, thread)
        except _Gone:
            # Somebody deleted the head: what follows begins a new thread.
            self._threads.forget(thread)
            self._begin(message, tried_since)

    def _begin(self, message: Message, tried_since: datetime | None) -> None:
        place = self._post(message, None, tried_since)
        if message.thread:
            self._threads.begin(self._channel, message.thread, place, message.key, message.title)

    def _post(self, message: Message, thread: Thread | None, tried_since: datetime | None) -> str:
        """Say it, unless it is there already; where it is (Slack's timestamp)."""
        if tried_since is not None:
            said = self._look(message, thread, tried_since)
            if said is not None:
                return said
        answer = self._ask(
            lambda: self._client.chat_postMessage(
                channel=self._channel,
                text=fallback(message),
                blocks=blocks(message, self._links),
                metadata=_metadata(message),
                thread_ts=thread.place if thread else None,
                # In a thread alone nobody would be called.
                reply_broadcast=True if thread else None,
                unfurl_links=False,
                unfurl_media=False,
            )
        )
        return str(answer["ts"])

    def _edit(self, message: Message, thread: Thread) -> None:
        """The head says where it stands now."""
        after = thread.with_step(message.key, message.title)
        try:
            self._ask(
                lambda: self._client.chat_update(
                    channel=self._channel,
                    ts=thread.place,
                    text=fallback(message),
                    blocks=blocks(message, self._links, after.steps),
                    metadata={
                        "event_type": EVENT_TYPE,
                        "event_payload": {"key": thread.keys[0]},
                    },
                )
            )
        except _Closed:
            logger.info("Slack no longer lets the first message of a thread be edited")
        self._threads.save(after)

    def _look(self, message: Message, thread: Thread | None, since: datetime) -> str | None:
        try:
            for found in self._said(thread, since):
                metadata = found.get("metadata") or {}
                if (metadata.get("event_payload") or {}).get("key") == message.key:
                    return str(found["ts"])
        except _Unreadable:
            # Rather twice than not at all.
            logger.warning(
                "the Slack app may not read the conversation, so a message whose delivery was cut "
                "off is sent again: give it the scope channels:history (groups:history)"
            )
        return None

    def _said(self, thread: Thread | None, since: datetime) -> Iterable[dict[str, Any]]:
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            options: dict[str, Any] = {
                "channel": self._channel,
                "oldest": f"{since.timestamp() - CLOCK_SECONDS:.6f}",
                "limit": PAGE_MESSAGES,
                "cursor": cursor,
                "include_all_metadata": True,
            }
            if thread is None:
                answer = self._ask(lambda: self._client.conversations_history(**options))  # noqa: B023
            else:
                place = thread.place
                answer = self._ask(
                    lambda: self._client.conversations_replies(ts=place, **options)  # noqa: B023
                )
            yield from answer.get("messages") or []
            cursor = (answer.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return

    def _ask(self, call: Callable[[], SlackResponse]) -> SlackResponse:
        try:
            return call()
        except SlackApiError as error:
            raise _failure(error.response) from None
        except (OSError, URLError, SlackClientError, ValueError) as error:
            raise DeliveryFailed(f"Slack cannot be reached ({type(error).__name__})") from None


class _Gone(DeliveryFailed):
    """The message that was to be edited or answered is no longer there."""


class _Closed(DeliveryFailed):
    """It is there, and may not be edited any more."""


class _Unreadable(DeliveryFailed):
    """The app may not read the conversation."""


def _metadata(message: Message) -> dict[str, Any]:
    return {"event_type": EVENT_TYPE, "event_payload": {"key": message.key}}


def _failure(response: SlackResponse) -> DeliveryFailed:
    if response.status_code == 429:
        wish = retry_after({name: str(value) for name, value in response.headers.items()})
        return DeliveryFailed("Slack asks to slow down", retry_after_seconds=wish)
    reason = str(response.get("error", "")) if isinstance(response.data, dict) else ""
    if reason in GONE:
        return _Gone(f"Slack refused: {reason}")
    if reason in CLOSED:
        return _Closed(f"Slack refused: {reason}")
    reading = response.api_url.rpartition("/")[2].startswith("conversations.")
    if reason == "missing_scope" and reading:
        return _Unreadable(f"Slack refused: {reason}")
    advice = ADVICE.get(reason, "check [notify] slack_token and slack_channel")
    told = reason[:80] or f"status {response.status_code}"
    return DeliveryFailed(f"Slack refused: {told}: {advice}", permanent=reason in NEVER)
