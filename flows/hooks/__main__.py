"""``python -m flows.hooks``: the webhook receiver as a process."""

from __future__ import annotations

import logging

from aiohttp import web

from flows.hooks.app import HookServer
from flows.hooks.links import action_pages
from flows.hooks.receipts import Receipts
from flows.stack.services import prefect_ui_url
from flows.wiring import open_context


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with open_context() as context:
        hooks = context.settings.hooks
        server = HookServer(
            hooks,
            Receipts(context.database),
            context.store,
            context.orchestrator(),
            prefect_ui_url(context.settings),
        )
        application = server.application()
        action_pages(context).register(application)
        web.run_app(application, host=hooks.host, port=hooks.port, print=None)


if __name__ == "__main__":
    main()
