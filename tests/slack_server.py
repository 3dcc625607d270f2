"""A local end of Slack: the incoming webhook and the four Web API methods the product uses, over real
sockets, with Block Kit's limits checked by Slack's own library and by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl

from slack_sdk.models.blocks import Block

TOKEN = "xoxb-verysecret"
CHANNEL = "C0123456789"


def size(text: str) -> int:
    """As JavaScript counts, and so Slack."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def problem_of(blocks: list[dict[str, Any]]) -> str | None:
    """What Slack would refuse (https://api.slack.com/reference/block-kit), or None."""
    if not 1 <= len(blocks) <= 50:
        return "between 1 and 50 blocks"
    for block in blocks:
        parsed = Block.parse(block)
        if parsed is None:
            return f"no block of type {block.get('type')}"
        try:
            parsed.validate_json()
        except Exception as error:  # noqa: BLE001 - whatever Slack's own library refuses
            return str(error)
        found = _problem_of_block(block)
        if found is not None:
            return found
    return None


def _problem_of_block(block: dict[str, Any]) -> str | None:
    kind = block["type"]
    if kind == "header":
        if block["text"]["type"] != "plain_text" or not 1 <= size(block["text"]["text"]) <= 150:
            return "header"
    elif kind == "section":
        if "text" not in block and not block.get("fields"):
            return "section without text and fields"
        if "text" in block and not 1 <= size(block["text"]["text"]) <= 3000:
            return "section text"
        fields = block.get("fields", [])
        if len(fields) > 10 or any(not 1 <= size(part["text"]) <= 2000 for part in fields):
            return "section fields"
    elif kind == "context":
        elements = block["elements"]
        if not 1 <= len(elements) <= 10 or any(not 1 <= size(e["text"]) <= 3000 for e in elements):
            return "context"
    elif kind == "actions":
        elements = block["elements"]
        if not 1 <= len(elements) <= 25:
            return "actions"
        if len({element["action_id"] for element in elements}) != len(elements):
            return "action_id is not unique"
        for element in elements:
            if (
                element["text"]["type"] != "plain_text"
                or not 1 <= size(element["text"]["text"]) <= 75
            ):
                return "button text"
            if not 1 <= len(element["action_id"]) <= 255 or len(element.get("url", "")) > 3000:
                return "button"
            if element.get("style") not in (None, "primary", "danger"):
                return "button style"
    else:
        return f"unexpected block {kind}"
    return None


@dataclass
class Slack:
    """What it got. ``faults`` are taken from the front, one a request:

    ``429`` (with Retry-After 7), ``500``, ``hang`` (no answer in time), ``lost`` (done, and the answer
    never comes), an error code such as ``not_in_channel``, or ``ok``.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    """In the channel and its threads, as they stand after edits."""
    edits: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    page: int = 200
    readable: bool = True
    refused: list[str] = field(default_factory=list)
    """What of a payload broke a limit."""
    url: str = ""
    lock: Lock = field(default_factory=Lock)

    @property
    def webhook(self) -> str:
        return f"{self.url}/services/T000/B000/verysecret"

    @property
    def api(self) -> str:
        return f"{self.url}/api/"

    def heads(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if "thread_ts" not in message]

    def replies(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if "thread_ts" in message]

    def answer(self, method: str, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("channel") != CHANNEL:
            return {"ok": False, "error": "channel_not_found"}
        return {
            "chat.postMessage": self._post,
            "chat.update": self._update,
            "conversations.history": self._history,
            "conversations.replies": self._history,
        }[method](values)

    def _post(self, values: dict[str, Any]) -> dict[str, Any]:
        refused = self._check(values)
        if refused is not None:
            return refused
        place = values.get("thread_ts")
        if place is not None and place not in [head["ts"] for head in self.heads()]:
            return {"ok": False, "error": "thread_not_found"}
        message = {
            name: values[name]
            for name in ("text", "blocks", "metadata", "thread_ts")
            if name in values
        }
        if values.get("reply_broadcast"):
            message["subtype"] = "thread_broadcast"
        message["ts"] = f"{time.time():.3f}{len(self.messages):03d}"
        self.messages.append(message)
        return {"ok": True, "ts": message["ts"], "channel": CHANNEL}

    def _update(self, values: dict[str, Any]) -> dict[str, Any]:
        refused = self._check(values)
        if refused is not None:
            return refused
        for message in self.messages:
            if message["ts"] == values["ts"]:
                message.update(text=values["text"], blocks=values["blocks"])
                self.edits.append(dict(message))
                return {"ok": True, "ts": values["ts"], "channel": CHANNEL}
        return {"ok": False, "error": "message_not_found"}

    def _history(self, values: dict[str, Any]) -> dict[str, Any]:
        if not self.readable:
            return {"ok": False, "error": "missing_scope", "needed": "channels:history"}
        found = [m for m in self.messages if float(m["ts"]) >= float(values.get("oldest", 0))]
        if "ts" in values:
            found = [m for m in found if values["ts"] in (m["ts"], m.get("thread_ts"))]
        else:
            found = [m for m in reversed(found) if "thread_ts" not in m or "subtype" in m]
        begin = int(values.get("cursor") or 0)
        end = begin + min(self.page, int(values.get("limit", 100)))
        shown = [
            message
            if values.get("include_all_metadata") in ("1", "true", True)
            else {name: value for name, value in message.items() if name != "metadata"}
            for message in found[begin:end]
        ]
        more = {"next_cursor": str(end)} if end < len(found) else {}
        return {"ok": True, "messages": shown, "response_metadata": more}

    def _check(self, values: dict[str, Any]) -> dict[str, Any] | None:
        problem = problem_of(values.get("blocks") or [])
        if not 0 < len(values.get("text", "")) <= 40_000:
            problem = "text"
        metadata = values.get("metadata")
        if metadata is not None and not (metadata["event_type"] and metadata["event_payload"]):
            problem = "metadata"
        if problem is None:
            return None
        self.refused.append(problem)
        return {"ok": False, "error": "invalid_blocks"}


@contextmanager
def start_slack(*faults: str) -> Iterator[Slack]:
    slack = Slack(faults=list(faults))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            method = self.path.rpartition("/")[2]
            with slack.lock:
                fault = slack.faults.pop(0) if slack.faults else "ok"
                slack.calls.append(method)
            if fault == "hang":
                time.sleep(1.5)
                return
            if fault == "429":
                self._say(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "7"})
            elif fault == "500":
                self._say(500, {"ok": False, "error": "internal_error"})
            elif fault not in ("ok", "lost"):
                self._say(200, {"ok": False, "error": fault})
            else:
                self._do(method, body, lost=fault == "lost")

        do_GET = do_POST

        def _do(self, method: str, body: bytes, *, lost: bool) -> None:
            if self.path.startswith("/services/"):
                values = {**json.loads(body), "channel": CHANNEL}
                with slack.lock:
                    answer = slack.answer("chat.postMessage", values)
                if not lost:
                    self._say(200 if answer["ok"] else 400, answer.get("error", "ok"))
                return
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self._say(200, {"ok": False, "error": "invalid_auth"})
                return
            with slack.lock:
                answer = slack.answer(method, self._values(body))
            if not lost:
                self._say(200, answer)

        def _values(self, body: bytes) -> dict[str, Any]:
            if "json" in (self.headers.get("content-type") or ""):
                return dict(json.loads(body))
            text = body.decode() or self.path.partition("?")[2]
            values: dict[str, Any] = dict(parse_qsl(text))
            for name in ("blocks", "metadata"):
                if name in values:
                    values[name] = json.loads(values[name])
            return values

        def _say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            plain = isinstance(value, str)
            answer = value.encode() if plain else json.dumps(value).encode()
            self.send_response(status)
            kind = "text/plain" if plain else "application/json"
            for name, text in {
                "content-type": kind,
                "content-length": str(len(answer)),
                **(headers or {}),
            }.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    slack.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield slack
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
