"""The channels, against real HTTP servers that check what they get."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from infra.database.open import Database
from infra.notify.block_kit import blocks, fallback
from infra.notify.console import ConsoleChannel
from infra.notify.everywhere import AppriseChannel, channel_name
from infra.notify.message import DeliveryFailed, Message
from infra.notify.open import open_channels
from infra.notify.slack import SlackChannel
from infra.notify.webhook import WebhookChannel
from infra.settings.operating import Notify
from tests.contracts.servers import free_port

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
MESSAGE = Message(
    key="rollout-7/promoted",
    topic="lights-1",
    title="lights@0123 promoted",
    what="The small model now answers <lights> & switches",
    why="all good e-processes crossed 20",
    evidence={"sessions": 120, "e_good": 23.456789, "verdict": "good"},
    link="http://127.0.0.1:4200/runs/1",
    undo="nightschool rollback lights-1",
)


@dataclass
class Receiver:
    """A server that answers as told and keeps the requests."""

    url: str
    answers: list[tuple[int, dict[str, str], bytes]]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def receiver(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
            status, headers, answer = found.answers.pop(0) if found.answers else (200, {}, b"ok")
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_port}/T000/B000/verysecret", list(answers))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def size(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def check_block_kit(payload: dict[str, Any]) -> None:
    """Slack's limits: https://api.slack.com/reference/block-kit/blocks."""
    assert 1 <= len(payload["blocks"]) <= 50
    assert 0 < len(payload["text"]) <= 40_000
    for block in payload["blocks"]:
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text"
            assert 1 <= size(block["text"]["text"]) <= 150
            continue
        assert block["type"] == "section"
        assert ("text" in block) or block["fields"]
        if "text" in block:
            assert 1 <= size(block["text"]["text"]) <= 3000
        assert len(block.get("fields", [])) <= 10
        for part in block.get("fields", []):
            assert part["type"] == "mrkdwn"
            assert 1 <= size(part["text"]) <= 2000


class TestSlack:
    def test_says_what_why_evidence_link_and_undo(self) -> None:
        with receiver() as slack:
            SlackChannel(slack.url).send(MESSAGE)
        payload = json.loads(slack.requests[0][1])
        check_block_kit(payload)
        shown = json.dumps(payload["blocks"])
        assert payload["blocks"][0]["text"]["text"] == "lights@0123 promoted"
        assert "&lt;lights&gt; &amp; switches" in shown
        assert "e-processes crossed 20" in shown
        assert "23.46" in shown
        assert "<http://127.0.0.1:4200/runs/1|" in shown
        assert "`nightschool rollback lights-1`" in shown

    def test_one_that_cannot_edit_calls_nobody_for_mere_progress(self) -> None:
        with receiver() as slack:
            SlackChannel(slack.url).send(replace(MESSAGE, progress=True))
            assert slack.requests == []
            SlackChannel(slack.url).send(MESSAGE)
        assert len(slack.requests) == 1

    @pytest.mark.parametrize(
        ("undo", "shown"),
        [
            ("nightschool rollback mail", "`nightschool rollback mail`"),
            ("it is gone; `nightschool night` trains anew",) * 2,
        ],
    )
    def test_only_a_command_is_shown_as_one(self, undo: str, shown: str) -> None:
        said = blocks(Message("k", "t", "title", "what", undo=undo))[-1]["text"]["text"]
        assert said == f"*Undo:* {shown}"

    @given(
        title=st.text(min_size=1, max_size=400),
        what=st.text("a<&>😀\n", max_size=20) | st.just("<" * 5000) | st.just("😀" * 4000),
        why=st.text(max_size=50) | st.just("&" * 4000),
        evidence=st.dictionaries(
            st.text(max_size=400), st.floats() | st.text(max_size=20) | st.none(), max_size=30
        ),
        undo=st.text(max_size=20) | st.just("`" * 4000),
    )
    def test_no_message_breaks_a_limit(
        self, title: str, what: str, why: str, evidence: dict[str, Any], undo: str
    ) -> None:
        message = Message("k", "t", title, what, why, evidence, "http://x/" + "y" * 500, undo)
        check_block_kit({"text": fallback(message), "blocks": blocks(message)})

    def test_the_most_evidence_there_may_be_fits(self) -> None:
        evidence = {f"name {n}": "v" * 5000 for n in range(200)}
        message = Message("k", "t", "title", "what", "why", evidence, "http://x", "undo it")
        check_block_kit({"text": fallback(message), "blocks": blocks(message)})
        assert "undo it" in json.dumps(blocks(message))
        assert "name 199" in json.dumps(blocks(message))

    @pytest.mark.parametrize(
        ("header", "seconds"), [("7", 7), ("0", 1), ("999999", 3600), ("soon", 30), (None, 30)]
    )
    def test_429_tells_when_to_come_back(self, header: str | None, seconds: float) -> None:
        headers = {"Retry-After": header} if header else {}
        with receiver((429, headers, b"")) as slack, pytest.raises(DeliveryFailed) as caught:
            SlackChannel(slack.url).send(MESSAGE)
        assert caught.value.retry_after_seconds == seconds
        assert not caught.value.permanent
        assert len(slack.requests) == 1

    @pytest.mark.parametrize(("status", "permanent"), [(400, True), (404, False), (500, False)])
    def test_a_refusal_names_the_setting_and_not_the_address(
        self, status: int, permanent: bool
    ) -> None:
        with receiver((status, {}, b"no")) as slack, pytest.raises(DeliveryFailed) as caught:
            SlackChannel(slack.url).send(MESSAGE)
        assert caught.value.permanent is permanent
        assert "slack_webhook_url" in str(caught.value)
        assert "verysecret" not in str(caught.value)

    def test_nobody_there_is_a_failure_without_the_address(self) -> None:
        with pytest.raises(DeliveryFailed, match="cannot be reached") as caught:
            SlackChannel(f"http://127.0.0.1:{free_port()}/verysecret").send(MESSAGE)
        assert "verysecret" not in str(caught.value)


class TestWebhook:
    def test_is_signed_so_that_a_standard_receiver_accepts_it(self) -> None:
        with receiver((204, {}, b"")) as other:
            WebhookChannel(other.url, SECRET).send(MESSAGE)
        headers, body = other.requests[0]
        payload = Webhook(SECRET).verify(body, headers)
        assert headers["webhook-id"] == MESSAGE.key
        assert payload["type"] == "lights-1"
        assert Message.from_dict(payload["data"]) == MESSAGE
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body.replace(b"120", b"121"), headers)

    def test_any_key_can_be_signed(self) -> None:
        with receiver() as other:
            WebhookChannel(other.url, SECRET).send(Message("größe\n1", "t", "title", "what"))
        headers, body = other.requests[0]
        Webhook(SECRET).verify(body, headers)

    def test_is_not_led_elsewhere(self) -> None:
        with (
            receiver() as elsewhere,
            receiver((307, {"location": elsewhere.url}, b"")) as first,
            pytest.raises(DeliveryFailed, match="307"),
        ):
            WebhookChannel(first.url, SECRET).send(MESSAGE)
        assert elsewhere.requests == []

    @pytest.mark.parametrize(
        ("status", "headers", "wish", "permanent"),
        [
            (429, {"Retry-After": "9"}, 9, False),
            (503, {"Retry-After": "9"}, 9, False),
            (503, {}, None, False),
            (410, {}, None, True),
        ],
    )
    def test_refusals(
        self, status: int, headers: dict[str, str], wish: float | None, permanent: bool
    ) -> None:
        with receiver((status, headers, b"x")) as other, pytest.raises(DeliveryFailed) as caught:
            WebhookChannel(other.url, SECRET).send(MESSAGE)
        assert caught.value.retry_after_seconds == wish
        assert caught.value.permanent is permanent

    def test_nobody_there_is_a_failure(self) -> None:
        with pytest.raises(DeliveryFailed, match="cannot be reached"):
            WebhookChannel(f"http://127.0.0.1:{free_port()}/", SECRET).send(MESSAGE)


def test_the_console_shows_all_of_it_and_no_control_characters() -> None:
    stream = io.StringIO()
    ConsoleChannel(stream).send(MESSAGE)
    ConsoleChannel(stream).send(Message("k", "t", "evil \x1b[2J\x07", "two\nlines"))
    shown = stream.getvalue()
    for part in ("promoted", "e-processes crossed 20", "sessions 120", "nightschool rollback"):
        assert part in shown
    assert "\x1b" not in shown and "\x07" not in shown
    assert "two lines" in shown


def test_a_closed_console_is_a_failure_and_no_crash() -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(DeliveryFailed):
        ConsoleChannel(stream).send(MESSAGE)


class TestOpening:
    def test_the_console_is_always_there(self, database: Database) -> None:
        assert list(open_channels(Notify(), database)) == ["console"]

    def test_all_of_them(self, database: Database) -> None:
        with receiver() as slack, receiver() as other, receiver() as third:
            address = third.url.replace("http://", "json://")
            channels = open_channels(
                Notify(
                    slack_webhook_url=SecretStr(slack.url),
                    webhook_url=other.url,
                    webhook_secret=SecretStr(SECRET),
                    apprise=(SecretStr(address),),
                ),
                database,
            )
            assert list(channels) == ["console", "slack", "webhook", channel_name(address)]
            for channel in channels.values():
                channel.send(MESSAGE)
        assert len(slack.requests) == len(other.requests) == len(third.requests) == 1
        sent = json.loads(third.requests[0][1])
        assert sent["title"] == MESSAGE.title
        assert MESSAGE.what in sent["message"] and MESSAGE.undo in sent["message"]

    def test_an_address_of_apprise_that_refuses_is_a_failure(self) -> None:
        with receiver((500, {}, b"no")) as other:
            channel = AppriseChannel(other.url.replace("http://", "json://"))
            with pytest.raises(DeliveryFailed, match="did not take it") as caught:
                channel.send(MESSAGE)
        assert "verysecret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("notify", "message"),
        [
            (Notify(webhook_url="http://x"), "always signed"),
            (Notify(webhook_url="http://x", webhook_secret=SecretStr("whsec_!")), "base64"),
            (Notify(webhook_url="ftp://x", webhook_secret=SecretStr(SECRET)), "http"),
            (Notify(slack_webhook_url=SecretStr("verysecret")), "https"),
        ],
    )
    def test_what_cannot_work_is_said_at_the_start(
        self, notify: Notify, message: str, database: Database
    ) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            open_channels(notify, database)
        assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"key": ""}, {"key": "x" * 201}, {"title": ""}, {"topic": "x" * 201}]
)
def test_a_message_that_no_table_holds_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="message"):
        Message(**{"key": "k", "topic": "t", "title": "x", "what": "y", **values})
