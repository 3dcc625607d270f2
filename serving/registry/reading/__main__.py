"""``python -m serving.registry.reading``: the registry's read API, and the mirror if one is set.

It never changes the registry; any number may run. SIGTERM and SIGINT end it.
"""

from __future__ import annotations

import errno
import logging
import sys

from aiohttp import web

from infra.database.open import Database, DatabaseError, open_database
from infra.objects.open import open_store
from infra.settings.model import Settings
from infra.settings.sources import SettingsError, load_settings
from serving.registry.mirror.worker import MirrorWorker
from serving.registry.reading.app import MAX_LINE_BYTES, ReadApi

KEEPALIVE_SECONDS = 30.0


def make_app(settings: Settings) -> web.Application:
    """The application, with a database of its own whose every wait is short."""
    database = Database(
        settings.database.url.get_secret_value(),
        busy_timeout_seconds=settings.registry.database_seconds,
        pool_size=settings.database.pool_size,
    )
    app = ReadApi(settings.registry, database, lambda: open_store(settings.storage)).app()
    if settings.registry.mlflow_uri is not None:
        worker = MirrorWorker(settings.registry, open_database(settings.database))
        app.cleanup_ctx.append(worker.while_it_serves)
    return app


def main() -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        settings = load_settings()
        app = make_app(settings)
    except (SettingsError, DatabaseError) as error:
        print(f"registry: {error}", file=sys.stderr)
        return 2
    host, port = settings.registry.host, settings.registry.port
    try:
        web.run_app(
            app,
            host=host,
            port=port,
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            print=lambda *_: print(f"registry: reading on http://{host}:{port}", flush=True),
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            print(
                f"registry: port {port} on {host} is in use: stop what uses it, "
                "or set [registry] port",
                file=sys.stderr,
            )
        else:
            print(f"registry: cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
