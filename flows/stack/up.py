"""``nightschool up``: the whole product on one machine, until somebody stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

from flows.stack.processes import Stack
from flows.stack.services import addresses, services
from infra.database.open import open_database
from infra.settings.model import Settings
from trainers.base_model import prepare_base

CHECK_SECONDS = 1.0


def run_until_stopped(settings: Settings, say: Callable[[str], None]) -> None:
    """Start the stack, restart what dies, and stop all of it on Ctrl-C or SIGTERM.

    Raises StackError: something did not start, or died too often.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    open_database(settings.database).upgrade()
    base = None
    if settings.engine.kind == "embedded":
        base = prepare_base(settings.engine, say).folder
    with Stack(Path("var/log"), say) as stack:
        stack.start(services(settings, base_model=base))
        for name, url in addresses(settings).items():
            say(f"  {name:<9} {url}")
        say("Running; Ctrl-C stops it all.")
        while not stopped.wait(CHECK_SECONDS):
            stack.check()
        say("Stopping.")
