"""Where the demo is played: its processes, started and watched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from flows.demo.settings import demo_ports
from flows.stack.processes import Stack, require_free_ports
from flows.stack.services import Service, services
from infra.database.open import open_database
from infra.settings.model import Settings
from trainers.base_model import prepare_base

EDGES = {
    "teacher": ("flows.demo.teacher", "the teacher's recorded answers"),
    "slack": ("flows.demo.slack_inbox", "a local end of Slack's webhook"),
}


class Site(Protocol):
    gateways: Sequence[str]
    """Addresses ending in /v1."""

    def start(self, answers: Mapping[str, object]) -> None:
        """Start everything; what the teacher answers, by the key of the call.

        Raises StackError: a process does not start.
        """
        ...

    def check(self) -> None:
        """Start again what has died. Raises StackError when it dies too often."""
        ...


class OneMachine:
    """Everything on this machine, below ``folder`` and on ports from ``port_base`` on."""

    def __init__(
        self,
        folder: Path,
        port_base: int,
        settings: Settings,
        stack: Stack,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._ports = demo_ports(port_base)
        self._settings = settings
        self._stack = stack
        self._say = say
        self.gateways: Sequence[str] = [f"http://127.0.0.1:{self._ports['gateway']}/v1"]

    def start(self, answers: Mapping[str, object]) -> None:
        files = {"teacher": self._folder / "teacher.json", "slack": self._folder / "slack.jsonl"}
        edges = [self._edge(name, file) for name, file in files.items()]
        # Before the long conversion: a busy port must not cost a newcomer a minute.
        require_free_ports([*edges, *services(self._settings, base_model=self._folder)])
        open_database(self._settings.database).upgrade()
        base = prepare_base(self._settings.engine, self._say)
        files["teacher"].write_text(json.dumps(answers))
        self._stack.start([*edges, *services(self._settings, base_model=base.folder)])

    def check(self) -> None:
        self._stack.check()

    def _edge(self, name: str, file: Path) -> Service:
        module, what = EDGES[name]
        port = self._ports[name]
        option = "--answers" if name == "teacher" else "--file"
        argv = (sys.executable, "-m", module, option, str(file), "--port", str(port))
        return Service(name, what, argv, "127.0.0.1", port, f"http://127.0.0.1:{port}/health")
