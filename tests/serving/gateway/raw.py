"""Bytes to a gateway and bytes back: what no HTTP client would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

LEAKS = (b"Traceback", b'File "', b".py", b"aiohttp", b"Exception", b"orjson", b"site-packages")


@dataclass
class Answer:
    """The first answer on a connection; status 0 when the connection was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        """The error object; fails the test when it is none, or tells of our insides."""
        assert 400 <= self.status < 500, (self.status, self.body[:500])
        assert self.headers.get("content-type", "").startswith("application/json"), self.headers
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and isinstance(error["type"], str)
        assert not [leak for leak in LEAKS if leak in self.body], self.body
        assert "python" not in self.headers.get("server", "").lower(), self.headers
        return dict(error)


async def exchange(url: str, *parts: bytes, seconds: float = 30) -> Answer:
    """Send the parts, read one answer, close."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            return await _read(reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, b"")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    status = int(first.split(" ")[1])
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        if "content-length" in headers:
            return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))
        body = b""
        while "chunked" in headers.get("transfer-encoding", ""):
            size = int(await reader.readline(), 16)
            body += (await reader.readexactly(size + 2))[:-2]
            if not size:
                break
        return Answer(status, headers, body)
    return Answer(status, headers, b"")


def post(
    body: bytes, *lines: str, path: str = "/v1/chat/completions", length: bool = True
) -> bytes:
    """A request as bytes, with these header lines."""
    head = [f"POST {path} HTTP/1.1", "Host: gateway", "Connection: close", *lines]
    if length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
