"""The demo's Slack: takes incoming-webhook messages on a local socket and keeps them in a file.

Started as ``python -m flows.demo.slack_inbox --file FILE --port N``. It answers as Slack does
(``ok`` as text) and refuses what Slack would refuse at this size: no text, or over 50 blocks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from aiohttp import web

MAX_BLOCKS = 50


class SlackInbox:
    def __init__(self, file: Path) -> None:
        self._file = file

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/health", self._health)
        app.router.add_post("/services/{path:.*}", self._receive)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _receive(self, request: web.Request) -> web.Response:
        message = await request.json()
        if not (message.get("text") or message.get("blocks")):
            return web.Response(status=400, text="no_text")
        if len(message.get("blocks") or []) > MAX_BLOCKS:
            return web.Response(status=400, text="invalid_blocks")
        with self._file.open("a") as inbox:
            inbox.write(json.dumps(message) + "\n")
        return web.Response(text="ok")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    inbox = SlackInbox(options.file)
    web.run_app(inbox.application(), host=options.host, port=options.port, print=None)


if __name__ == "__main__":
    main()
