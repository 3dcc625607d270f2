"""An answer that is there as a whole: its head and body go out in one piece, by the shortest way.

aiohttp's own response looks for what this one never has: bodies of unknown length, cookies,
compression, answers without a body. What is written is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion10
from aiohttp.http_writer import StreamWriter, _serialize_headers


def whole_answer(status: int, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """Args: headers: the content's type among them."""
    if status < 200 or status in (204, 304):
        return web.Response(status=status, body=body, headers=headers)
    return _Whole(status, body, headers)


class _Whole(web.StreamResponse):
    """To a POST, with a status that has a body."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self._whole = body

    async def _start(self, request: web.BaseRequest) -> AbstractStreamWriter:
        writer, headers = request.writer, self._headers
        assert isinstance(writer, StreamWriter)
        self._payload_writer = writer
        headers["Content-Length"] = str(len(self._whole))
        headers["Date"] = rfc822_formatted_time()
        await request._prepare_hook(self)
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        old = request.version == HttpVersion10
        if "Connection" not in headers and self._keep_alive is old:
            headers["Connection"] = "keep-alive" if old else "close"
        begin = f"HTTP/1.{request.version.minor} {self._status} {self._reason}"
        writer._write(_serialize_headers(begin, headers) + self._whole)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Waits until the caller has read most of it, as aiohttp's does."""
        if not self._eof_sent and self._payload_writer is not None:
            self._eof_sent = True
            await self._payload_writer.drain()
