"""``python -m flows.hooks``: the webhook receiver as a process."""

from __future__ import annotations

import logging

from aiohttp import web

from flows.hooks.app import HookServer
from flows.wiring import open_context


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with open_context() as context:
        hooks = context.settings.hooks
        server = HookServer(context)
        web.run_app(
            server.application(), host=hooks.host, port=hooks.port, print=None, access_log=None
        )


if __name__ == "__main__":
    main()
