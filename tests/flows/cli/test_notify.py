"""``nightschool notify test``, with a server that takes or refuses."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from infra.database.open import Database
from tests.flows.cli.conftest import Run, lines

SECRET = "hunter2-do-not-print"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes a message, or refuses it, by its path."""

    taken: list[bytes] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        good = self.path.startswith("/good")
        if good:
            self.taken.append(body)
        self.send_response(200 if good else 403)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    Receiver.taken = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestNotify:
    def test_every_channel_gets_a_message(
        self, run: Run, empty: Database, receiver: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("NIGHTSCHOOL_NOTIFY__SLACK_WEBHOOK_URL", f"{receiver}/good/{SECRET}")
        result = run("notify", "test")
        assert lines(result) == ["console: sent", "slack: sent"]
        (body,) = Receiver.taken
        assert "Night School: a test message" in body.decode()
        assert SECRET not in result.output

    def test_one_channel_alone_can_be_tried(
        self, run: Run, empty: Database, receiver: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("NIGHTSCHOOL_NOTIFY__SLACK_WEBHOOK_URL", f"{receiver}/good/{SECRET}")
        assert lines(run("notify", "test", "--channel", "slack")) == ["slack: sent"]
        assert len(Receiver.taken) == 1
        assert lines(run("notify", "test", "--channel", "console")) == ["console: sent"]
        assert len(Receiver.taken) == 1, "the other one was not asked"
        refused = run("notify", "test", "--channel", "pigeon", status=3)
        assert "there are console, slack" in refused.stderr

    def test_a_channel_that_refuses_fails_the_command_and_keeps_its_address_secret(
        self, run: Run, empty: Database, receiver: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("NIGHTSCHOOL_NOTIFY__SLACK_WEBHOOK_URL", f"{receiver}/bad/{SECRET}")
        result = run("notify", "test", status=1)
        assert "console: sent" in result.stdout
        assert "slack: Slack refused with status 403" in result.stdout
        assert "1 of the channels do not work" in result.stderr
        assert SECRET not in result.output

    def test_a_channel_that_is_set_up_by_half_is_a_wrong_setting(
        self, run: Run, empty: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("NIGHTSCHOOL_NOTIFY__WEBHOOK_URL", "http://127.0.0.1:9/hook")
        refused = run("tasks", status=2)
        assert "webhook_url is set without webhook_secret" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
