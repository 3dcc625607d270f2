"""A real Prefect server of the test session's own, started as the product starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import psutil

from flows.stack.processes import Stack
from flows.stack.services import prefect_api_url, prefect_environment, services
from infra.settings.model import Settings

T = TypeVar("T")

SLOT_WAIT = "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"
"""How long a run waits before it asks again whether it is its turn: 30 by default."""
_OWN = ("PREFECT_API_URL", "PREFECT_HOME")


@dataclass(frozen=True)
class PrefectServer:
    settings: dict[str, str]
    """Night School's settings for it, as environment variables."""
    variables: dict[str, str]
    """Prefect's own variables for a process that talks to it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def process_of(run_id: str) -> psutil.Process | None:
    """The process in which Prefect's runner runs a flow run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id:
                return process
    return None


def eventually(
    what: Callable[[], T | None], said: str, seconds: float = 150, every: float = 0.5
) -> T:
    """What ``what`` says as soon as it says something. Raises AssertionError when it never does."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, said
        time.sleep(every)
    return found


@contextmanager
def start_prefect(folder: Path) -> Iterator[PrefectServer]:
    """Only the server: no flow is deployed in it."""
    settings = Settings.model_validate({"prefect": {"port": free_port(), "home": folder / "home"}})
    # What this machine is set to must not win over what the tests start.
    before = {name: os.environ.pop(name) for name in list(os.environ) if name in _OWN}
    try:
        (server,) = [s for s in services(settings, base_model=folder) if s.name == "prefect"]
        server = replace(server, environment={**server.environment, SLOT_WAIT: "3"})
        variables = prefect_environment(settings)
    finally:
        os.environ.update(before)
    with Stack(folder / "log") as stack:
        stack.start([server])
        yield PrefectServer(
            {
                "NIGHTSCHOOL_PREFECT__API_URL": prefect_api_url(settings),
                "NIGHTSCHOOL_PREFECT__HOME": str(settings.prefect.home),
            },
            variables,
        )
