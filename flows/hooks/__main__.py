"""``python -m flows.hooks``: the webhook receiver as a process."""

from __future__ import annotations

import logging

from aiohttp import web

from flows.hooks.app import HookServer
from flows.hooks.links import action_pages
from flows.wiring import open_context


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with open_context() as context:
        hooks = context.settings.hooks
        application = HookServer(context).application()
        action_pages(context).register(application)
        # No access log: the links carry their token in the address.
        web.run_app(application, host=hooks.host, port=hooks.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
