"""A mock teacher that answers at once, so that what is measured is whoever stands before it.

A tool call where tools are offered, a record where a schema asks for one, else a text.

``python -m bench.support.quick_teacher PORT``: every POST is a chat completion; with ``"stream": true``
in its body the answer is a text in twenty events, a millisecond apart.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from typing import cast

import orjson
import uvloop

from bench.support.load import letters

EVENTS = 20
EVENT_SECONDS = 0.001
NUMBER = "naaaaaaaa"
_COUNT = count()


def _json(value: object) -> bytes:
    return orjson.dumps(value)


def _whole(message: dict[str, object], reason: str = "stop") -> bytes:
    body = _json(
        {
            "id": f"chatcmpl-{NUMBER}",
            "object": "chat.completion",
            "created": 1,
            "model": "big",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", **message},
                    "finish_reason": reason,
                }
            ],
            "usage": {"prompt_tokens": 200, "completion_tokens": 6, "total_tokens": 206},
        }
    )
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head.encode() % len(body) + body


_LABEL = _whole({"content": f"The label {NUMBER}"})
_RECORD = _whole({"content": f'{{"order_id": "{NUMBER}", "items": [], "reason": "too large"}}'})
_CALL = {"name": "HassTurnOn", "arguments": f'{{"area": "kitchen {NUMBER}", "domain": "light"}}'}
_TOOL = _whole(
    {
        "content": None,
        "tool_calls": [{"id": f"call_{NUMBER}", "type": "function", "function": _CALL}],
    },
    "tool_calls",
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    data = _json(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "big",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
    )
    return _chunk(b"data: " + data + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


_FIRST = _event({"role": "assistant", "content": ""}) + _event({"content": "word "})
_MORE = _event({"content": "word "})
_LAST = _event({}, "stop") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class _Served(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[:end].lower()
            body, rest = self._body(head, self._data[end + 4 :])
            if body is None:
                return
            self._data = rest
            self._answer(body)

    def _body(self, head: bytes, after: bytes) -> tuple[bytes | None, bytes]:
        """The request's body if it is all there, and what follows it."""
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].partition(b"\r\n")[0])
            return (after[:length], after[length:]) if len(after) >= length else (None, after)
        if b"transfer-encoding: chunked" in head:
            end = after.find(b"0\r\n\r\n")
            return (after[:end], after[end + 5 :]) if end >= 0 else (None, after)
        return b"", after

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        if b'"stream":true' not in body and b'"stream": true' not in body:
            whole = _TOOL if b'"tools"' in body else _RECORD if b'"json_schema"' in body else _LABEL
            # No two answers are the same: what was seen before is cheap to anonymize.
            number = b"n" + letters(next(_COUNT))
            self._transport.write(whole.replace(NUMBER.encode(), number))
            return
        self._transport.write(_STREAM_HEAD + _FIRST)
        self._later(1)

    def _later(self, count: int) -> None:
        asyncio.get_running_loop().call_later(EVENT_SECONDS, self._next, count)

    def _next(self, count: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if count == EVENTS:
            self._transport.write(_LAST)
        else:
            self._transport.write(_MORE)
            self._later(count + 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Served, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
