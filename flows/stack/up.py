"""``nightschool up``: the whole product on one machine, until somebody stops it."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.stack.processes import Stack, StackError
from flows.stack.services import front_doors, services
from infra.database.open import open_database
from infra.settings.model import Settings
from trainers.base_model import prepare_base

CHECK_SECONDS = 1.0
LOCK = Path("var/up.lock")


@contextmanager
def only_one(path: Path = LOCK) -> Iterator[None]:
    """Hold the lock of this folder's stack; the kernel frees it with the process, however it ends.

    Raises:
        StackError: another process has it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened for appending: the one who is refused must not wipe out who holds it.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise StackError(
                f"nightschool up runs here already (process {holder}, {path.absolute()}): stop that "
                "one, or start this one in another folder with other ports"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def run_until_stopped(settings: Settings, say: Callable[[str], None]) -> None:
    """Start the stack, restart what dies, and stop all of it on Ctrl-C or SIGTERM.

    Raises StackError: another stack runs here, something did not start, or died too often.
    """
    with only_one():
        _run(settings, say)


def _run(settings: Settings, say: Callable[[str], None]) -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    open_database(settings.database).upgrade()
    base = None
    if settings.engine.kind == "embedded":
        base = prepare_base(settings.engine, say).folder
    with Stack(Path("var/log"), say) as stack:
        stack.start(services(settings, base_model=base))
        for what, url in front_doors(settings).items():
            say(f"  {what:<12} {url}")
        say("Running; Ctrl-C stops it all.")
        while not stopped.wait(CHECK_SECONDS):
            stack.check()
        say("Stopping.")
