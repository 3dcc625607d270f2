"""The HTTP server under the application: its own refusals have OpenAI's shape too, and end gracefully.

What is not HTTP never reaches the application: aiohttp answers it, in plain text that quotes what was
sent. Here such an answer is an error object like any other, which quotes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from infra.settings.model import Settings
from serving.gateway.pauses import collect_now_and_then, keep_short
from serving.gateway.problems import GatewayError
from serving.gateway.server import SERVER, Gateway

logger = logging.getLogger(__name__)

_MESSAGES = {
    400: "this is not a well-formed HTTP/1.1 request",
    404: "no such path: the API is under /v1",
    405: "this path does not take this method",
    413: "the request is too large",
    417: "the only expectation that can be met is 100-continue",
    431: "a line of the request's head is too long",
}


def shaped(status: int) -> web.Response:
    """What the caller gets instead of the server's own page."""
    if status >= 500:
        error = GatewayError(500, "the gateway failed", kind="api_error")
    else:
        error = GatewayError(status, _MESSAGES.get(status, "the request is not acceptable"))
    error.headers["Server"] = SERVER
    return error.response()


class _Protocol(RequestHandler):
    def resume_reading(self, resume_parser: bool = True) -> None:
        # Each read of a body asks for it, and the parser is asked for nothing in vain.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, LineTooLong):
            status = 431
        if status >= 500:
            logger.error("a request failed inside the server", exc_info=exc)
        else:
            logger.debug("not HTTP: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is out: the connection is broken off instead")
        response = shaped(status)
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, made: Any) -> None:
        """Args: made: the server that the application makes of itself."""
        super().__init__(
            made.request_handler, request_factory=made.request_factory, loop=made._loop
        )
        self._kwargs = made._kwargs
        self._handle = made.request_handler
        self.request_handler = self._shaped

    async def _shaped(self, request: Any) -> web.StreamResponse:
        expected = request.headers.get("Expect")
        if expected is not None and expected.lower() != "100-continue":
            return shaped(417)
        try:
            response: web.StreamResponse = await self._handle(request)
        except web.HTTPException as error:
            # The framework's own, for what no handler was asked.
            return shaped(error.status)
        return response

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """``web.AppRunner`` whose server speaks as above."""

    async def _make_server(self) -> Any:
        return _Server(await super()._make_server())


async def serve(settings: Settings, stopping: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT, then end without breaking an answer off.

    After the signal: ``/readyz`` says 503 and connections are closed after their next answer, for
    ``drain_notice_seconds``, so that a balancer looks elsewhere; then nothing new is accepted and the
    answers under way have ``drain_seconds`` to end.

    Args:
        stopping: called at the signal.

    Raises:
        OSError: the address cannot be listened on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host, port = settings.gateway.host, settings.gateway.port
    gateway = Gateway(settings)
    runner = Runner(
        gateway.app(),
        shutdown_timeout=settings.gateway.drain_seconds,
        # Also the bound on how long a connection may take over a request's head.
        keepalive_timeout=settings.gateway.keepalive_timeout_seconds,
        access_log=None,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        keep_short()  # what start-up made stays for good
        collecting = asyncio.create_task(collect_now_and_then(lambda: gateway.in_flight))
        print(f"gateway: serving on http://{host}:{port}", flush=True)
        await stop.wait()
        stopping()
        gateway.drain()
        await asyncio.sleep(settings.gateway.drain_notice_seconds)
        collecting.cancel()
    finally:
        await runner.cleanup()
