"""Start the stack's processes, watch them, stop every one of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from flows.stack.services import Service
from infra.parent_death import end_with_parent

STOP_SECONDS = 15.0
MAX_RESTARTS = 5


class StackError(Exception):
    """A process could not be started; the message names it, the reason and its log file."""


@dataclass
class Running:
    service: Service
    process: subprocess.Popen[bytes]
    log: Path
    restarts: int = 0


class Stack:
    """A context manager over the processes of one machine.

    Each process leads its own process group and asks the kernel to be stopped when its parent
    dies, so neither Ctrl-C nor ``kill -9`` of the parent leaves anything behind.
    """

    def __init__(self, logs: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._logs = logs
        self._say = say
        self._running: list[Running] = []

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, services: Sequence[Service]) -> None:
        """Start all at once, those that need another one when it is ready; wait for every one.

        Raises:
            StackError: a port is taken, a process died, or one was not ready in time.
        """
        require_free_ports(services)
        self._logs.mkdir(parents=True, exist_ok=True)
        started = [self._launch(service) for service in services if service.after is None]
        self._running += started
        for running in started:
            self._await_ready(running)
            for service in services:
                if service.after == running.service.name:
                    started.append(self._launch(service))
                    self._running.append(started[-1])

    def check(self) -> None:
        """Restart what has died, a bounded number of times. Raises StackError beyond that."""
        for running in self._running:
            code = running.process.poll()
            if code is None:
                continue
            if running.restarts >= MAX_RESTARTS:
                raise StackError(self._death(running, code))
            self._say(f"{running.service.name} ended with status {code}: starting it again")
            again = self._launch(running.service)
            running.process, running.restarts = again.process, running.restarts + 1
            self._await_ready(running)

    def pids(self) -> dict[str, int]:
        return {running.service.name: running.process.pid for running in self._running}

    def stop(self) -> None:
        """Terminate those that need another one first, then the rest; kill what does not end.

        Each half has ``STOP_SECONDS``: the flows take leave of a Prefect server that still answers.
        """
        dependent = [running for running in self._running if running.service.after is not None]
        others = [running for running in self._running if running.service.after is None]
        for half in (dependent, others):
            for running in reversed(half):
                _signal_group(running.process, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for running in reversed(half):
                self._await_end(running, deadline)
        self._running.clear()

    def _await_end(self, running: Running, deadline: float) -> None:
        try:
            running.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._say(f"{running.service.name} did not end: killing it")
        # The group may hold children that outlived their leader.
        _signal_group(running.process, signal.SIGKILL)
        running.process.wait()

    def _launch(self, service: Service) -> Running:
        log = self._logs / f"{service.name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                service.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **service.environment},
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )
        return Running(service, process, log)

    def _await_ready(self, running: Running) -> None:
        service = running.service
        deadline = time.monotonic() + service.ready_seconds
        while service.ready_url and not answers(service.ready_url):
            code = running.process.poll()
            if code is not None:
                raise StackError(self._death(running, code))
            if time.monotonic() > deadline:
                raise StackError(
                    f"{service.name} was not ready after {service.ready_seconds:.0f} s "
                    f"({service.ready_url}); see {running.log}"
                )
            time.sleep(0.1)
        self._say(f"{service.name}: {service.what}")

    @staticmethod
    def _death(running: Running, code: int) -> str:
        tail = running.log.read_text(errors="replace").strip().splitlines()[-3:]
        said = " | ".join(line.strip() for line in tail)
        return f"{running.service.name} ended with status {code}: {said} (all of it: {running.log})"


def require_free_ports(services: Sequence[Service]) -> None:
    """One clear line for all ports that are taken.

    Raises:
        StackError: names every taken port, who wants it and the setting that moves it.
    """
    taken = [
        f"{service.port} ({service.name})"
        for service in services
        if service.host and service.port and not _is_free(service.host, service.port)
    ]
    if taken:
        raise StackError(
            f"port {', '.join(taken)} is in use: stop what listens there, or choose another port "
            "(nightschool config lists the settings; nightschool demo --port-base moves them all)"
        )


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    """Whether a GET of this address answers 200 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return
