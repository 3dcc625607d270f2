"""An answer written by the short way is the one that aiohttp's own response would have been."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from serving.gateway.whole_answer import whole_answer

HEADERS = {"Content-Type": "application/json", "X-Request-Id": "r-1"}
BODY = b'{"a": 1}'


def asked(version: str, *lines: str) -> bytes:
    head = [f"POST / HTTP/{version}", "Host: localhost", "Content-Length: 2", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n{}"


async def answers(status: int, requests: list[bytes]) -> dict[str, list[object]]:
    """What each kind of response says to each request: head in order, body, whether it hangs up."""

    async def tell(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "somebody"

    async def own(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=BODY, headers=HEADERS)

    async def short(request: web.Request) -> web.StreamResponse:
        return whole_answer(status, BODY, HEADERS)

    said: dict[str, list[object]] = {}
    for handler in (own, short):
        app = web.Application()
        app.on_response_prepare.append(tell)
        app.router.add_post("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        said[handler.__name__] = [await _said(port, request) for request in requests]
        await runner.cleanup()
    return said


async def _said(port: int, request: bytes) -> object:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    begin, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines if line)
    assert headers.pop(b"date")
    body = await reader.readexactly(int(headers.get(b"content-length", 0)))
    hangs_up = b"close" in headers.get(b"connection", b"") or begin.startswith(b"HTTP/1.0")
    if hangs_up and b"keep-alive" not in headers.get(b"connection", b""):
        assert await reader.read() == b""
    else:
        writer.write(request)  # the connection is good for another one
        assert (await reader.readuntil(b"\r\n")).rstrip() == begin
    writer.close()
    return begin, headers, body


@pytest.mark.parametrize("status", [200, 400, 429, 503, 204, 304])
def test_it_is_written_as_aiohttp_would(status: int) -> None:
    requests = [
        asked("1.1"),
        asked("1.1", "Connection: close"),
        asked("1.0"),
        asked("1.0", "Connection: keep-alive"),
    ]
    said = asyncio.run(answers(status, requests))
    assert said["short"] == said["own"]


def test_a_header_cannot_end_the_head() -> None:
    async def tried() -> bytes:
        async def handler(_: web.Request) -> web.StreamResponse:
            return whole_answer(200, BODY, {**HEADERS, "X-Odd": "a\r\nX-More: b"})

        app = web.Application()
        app.router.add_post("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(asked("1.1"))
        said = await reader.read()
        writer.close()
        await runner.cleanup()
        return said

    assert b"X-More" not in asyncio.run(tried())
