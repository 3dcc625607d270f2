"""A teacher process whose behaviour is changed while it runs.

``python -m bench.support.faulty_teacher PORT`` speaks chat completions and says back the last
message's text. ``POST /mode`` with a mode's name as the body sets how: ok, error (500), limit (429),
hang, break (in the middle of a stream).
"""

from __future__ import annotations

import sys
from typing import Any

from aiohttp import web

from tests.serving.gateway.upstreams import TeacherServer

MODES = ("ok", "error", "limit", "hang", "break")


class FaultyTeacher(TeacherServer):
    """The tests' teacher with a door for the mode, and without a memory of what it was asked."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/mode", self._set_mode)
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.mode == "limit":
            body: dict[str, Any] = {"error": {"message": "slower", "type": "rate_limit_error"}}
            return web.json_response(body, status=429, headers={"Retry-After": "1"})
        response = await self._chat(request)
        del self.asked[:-100], self.keys[:-100]
        return response

    async def _set_mode(self, request: web.Request) -> web.Response:
        mode = await request.text()
        if mode not in MODES:
            return web.Response(status=400, text=f"modes: {', '.join(MODES)}")
        self.mode = mode
        return web.Response(text=mode)


if __name__ == "__main__":
    web.run_app(
        FaultyTeacher().app(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        print=None,
        access_log=None,
        handler_cancellation=True,
    )
