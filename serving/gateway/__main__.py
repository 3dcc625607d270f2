"""``python -m serving.gateway [--config nightschool.toml]``: run one gateway until it is told to stop.

SIGTERM and SIGINT stop it gracefully: it says that it is not ready, takes no new connections, answers
the calls under way (for a bounded time) and ships the spool. ``kill -9`` loses no acknowledged record
either; the next start ships it.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import faulthandler
import logging
import sys
from pathlib import Path

import uvloop

from infra.artifacts.manifest import ArtifactError
from infra.settings.serving import Gateway
from infra.settings.sources import SettingsError, load_settings
from serving.gateway.http_server import serve
from serving.gateway.pauses import keep_short

SWITCH_SECONDS = 0.0005
AFTER_CALLS_SECONDS = 65.0
"""For the rest of the end: what nobody waits for, the records' backlog and shipping have 20 each."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, default=None, help="TOML file with the settings")
    given = parser.parse_args(arguments)
    # The recorder's thread computes; the event loop must not wait 5 ms for it each time.
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_short()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        settings = load_settings(given.config)
    except SettingsError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    host, port = settings.gateway.host, settings.gateway.port
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, lambda: _end_within(settings.gateway)))
    except (ArtifactError, SettingsError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            print(
                f"gateway: port {port} on {host} is in use: stop what uses it, "
                "or set [gateway] port",
                file=sys.stderr,
            )
        else:
            print(f"gateway: cannot start: {error}", file=sys.stderr)
        return 1
    return 0


def _end_within(gateway: Gateway) -> None:
    """Whatever hangs, be gone in time, and show on stderr where each thread was. Loses no record."""
    seconds = gateway.drain_notice_seconds + gateway.drain_seconds + AFTER_CALLS_SECONDS
    faulthandler.dump_traceback_later(seconds, exit=True)


if __name__ == "__main__":
    sys.exit(main())
