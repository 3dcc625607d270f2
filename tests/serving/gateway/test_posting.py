"""Posts over aiohttp's connections: kept when an answer was read to its end, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from serving.gateway.posting import Poster

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Says what it is told to, to each request, and keeps what it was sent."""

    def __init__(self, say: bytes, *, hang_up: bool = False) -> None:
        self.say, self.hang_up = say, hang_up
        self.connections = 0
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.heads.append(head + await reader.readexactly(length))
                writer.write(self.say)
                if self.hang_up:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def posting(server: Server, credentials: str = "") -> AsyncIterator[Poster]:
    running = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = running.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as session:
        yield Poster(session, f"http://{credentials}127.0.0.1:{port}/v1/chat?a=b")
    running.close()


async def test_a_connection_is_kept_after_a_whole_answer_and_given_up_after_half_of_one() -> None:
    server = Server(OK)
    async with posting(server) as poster:
        for _ in range(3):
            async with await poster.post(b"{}", {"accept": "x/y"}) as answer:
                assert answer.status == 200 and await answer.content.read() == b"ok"
        assert server.connections == 1
        server.say = OK.replace(b"Length: 2", b"Length: 9")
        async with await poster.post(b"{}", {}) as answer:
            assert await answer.content.readany() == b"ok"
        server.say = OK
        async with await poster.post(b"x" * 200_000, {}) as answer:
            assert await answer.content.read() == b"ok"
    assert server.connections == 2
    first = server.heads[0].lower()
    assert first.startswith(b"post /v1/chat?a=b http/1.1\r\n") and first.endswith(b"\r\n\r\n{}")
    assert first.count(b"\r\naccept: ") == 1 and b"\r\naccept: x/y\r\n" in first
    assert first.count(b"\r\nhost: 127.0.0.1:") == 1
    assert server.heads[-1].endswith(b"x" * 200_000)


async def test_what_comes_before_the_answer_is_passed_over_and_credentials_go_along() -> None:
    server = Server(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
    async with posting(server, "ann:pw@") as poster, await poster.post(b"{}", {}) as answer:
        assert answer.status == 200
        assert await answer.content.read() == b"ok"
    assert b"\r\nauthorization: basic yw5uonb3\r\n" in server.heads[0].lower()


@pytest.mark.parametrize(
    ("say", "error"),
    [(b"", aiohttp.ServerDisconnectedError), (b"no HTTP\r\n\r\n", aiohttp.ClientResponseError)],
)
async def test_what_is_no_answer_is_aiohttps_error(say: bytes, error: type[Exception]) -> None:
    async with posting(Server(say, hang_up=True)) as poster:
        with pytest.raises(error):
            await poster.post(b"{}", {})


async def test_an_answer_that_breaks_off_and_a_server_that_is_away_are_aiohttps_errors() -> None:
    server = Server(OK.replace(b"Length: 2", b"Length: 9"), hang_up=True)
    async with posting(server) as poster, await poster.post(b"{}", {}) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await Poster(session, "http://127.0.0.1:9/v1").post(b"{}", {})


async def test_no_header_begins_another() -> None:
    async with posting(Server(OK)) as poster:
        with pytest.raises(ValueError, match="line break"):
            await poster.post(b"{}", {"accept": "a\r\nx-more: b"})
        with pytest.raises(ValueError, match="line break"):
            await poster.post(b"{}", {"accept": "a\nb"})
