"""Posts to one address over aiohttp's own connections, without what its client does for every request.

Addresses, names, certificates, the pool, half-closed connections and the reading of answers are
aiohttp's. Left out is what is the same each time (the address, the head's lines, cookies that are
never kept) and what nobody asked for (redirects, uploads in parts, traces): half of a request's cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

AT_ONCE_BYTES = 64 << 10
"""Up to this size head and body are one piece, and go out together."""


class Posted:
    """An answer whose head is there; the body is to be read. Closing twice does nothing."""

    def __init__(
        self,
        connection: aiohttp.connector.Connection,
        status: int,
        headers: CIMultiDictProxy[str],
        content: aiohttp.StreamReader,
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection = connection

    def close(self) -> None:
        """Give the rest of the body up, and the connection with it."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        transport = self._connection.transport
        if transport is not None and transport.get_write_buffer_size():
            self._connection.close()  # answered before all of the request was out
        # Kept for the next request only when the whole answer was read.
        self._connection.release()


class Poster:
    """For one address and one event loop.

    Args:
        session: whose connections are used, and whose time to connect; closing it closes them.
        url: where to.

    Raises:
        aiohttp.InvalidURL: the address is none.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        assert session.connector is not None
        try:
            address = URL(url)
            # Tells the pool where to connect, and how a request of aiohttp's would begin.
            self._like = aiohttp.ClientRequest(
                "POST", address, loop=asyncio.get_running_loop(), session=session
            )
        except ValueError as error:
            raise aiohttp.InvalidURL(url) from error
        self._connector = session.connector
        self._timeout = session.timeout
        self._begin = f"POST {address.raw_path_qs} HTTP/1.1\r\n"
        self._lines = {
            name.lower(): f"{name}: {value}\r\n"
            for name, value in self._like.headers.items()
            if name.lower() not in ("content-type", "content-length")
        }

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Send it and wait for the head of the answer.

        Args:
            headers: names in small letters; they come instead of aiohttp's own.

        Raises:
            aiohttp.ClientError: as a request of aiohttp's client does.
            ValueError: a header has a line break in it.
        """
        head = self._head(len(body), headers)
        try:
            connection = await self._connector.connect(self._like, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(
                f"Connection timeout to host {self._like.url}"
            ) from error
        try:
            return await self._exchange(connection, head, body)
        except BaseException:
            connection.close()
            raise

    async def _exchange(
        self, connection: aiohttp.connector.Connection, head: bytes, body: bytes
    ) -> Posted:
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            raise aiohttp.ServerDisconnectedError
        protocol.set_response_params(read_until_eof=True, auto_decompress=True)
        if len(body) <= AT_ONCE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        while True:
            try:
                message, content = await protocol.read()
            except HttpProcessingError as error:
                raise aiohttp.ClientResponseError(
                    self._like.request_info,
                    (),
                    status=error.code,
                    message=error.message,
                    headers=error.headers,
                ) from error
            if not 100 <= message.code <= 199 or message.code == 101:
                return Posted(connection, message.code, message.headers, content)

    def _head(self, length: int, headers: Mapping[str, str]) -> bytes:
        own = [line for name, line in self._lines.items() if name not in headers]
        given = [f"{name}: {value}\r\n" for name, value in headers.items()]
        text = "".join((self._begin, *own, *given, f"content-length: {length}\r\n\r\n"))
        if text.count("\n") != len(own) + len(given) + 3 or text.count("\r") != text.count("\n"):
            raise ValueError("a header of a request has a line break in it")
        # A caller's bytes that are no UTF-8 go out as they came in.
        return text.encode("utf-8", "surrogateescape")
