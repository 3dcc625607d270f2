"""Runs a container's command without a container: its environment, its health check, its SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.infra.deploy.reading import (
    DEPLOY,
    ROOT,
    command_of,
    compose,
    environment_of,
    health_check_of,
)
from tests.prefect_server import free_port

START_SECONDS = 180
STOP_SECONDS = 90
# Ray drains its node, and then ends with 1 on purpose.
_ENDS = {"ray-head": {1}, "ray-worker": {1}}
_STATE = "/var/lib/nightschool"
_PORTS = ("8300", "8302", "8303", "8306", "4200", "8080", "6379", "10001")


@dataclass
class Place:
    """Where this machine has what the containers have: folders, names and ports of its own.

    Args:
        folder: the test's own; the containers' writable folder and memory lie below it.
        known: texts to exchange before anything else, such as the address of a real server.
    """

    folder: Path
    known: Mapping[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=lambda: compose()["services"])

    def __post_init__(self) -> None:
        self.state = self.folder / "state"
        self.state.mkdir(exist_ok=True)
        # Ray's sockets lie there, and the name of a socket may not be long.
        self.memory = TemporaryDirectory(prefix="c-", dir="/tmp", ignore_cleanup_errors=True)
        self.ports = {port: str(free_port()) for port in _PORTS}

    def here(self, text: str) -> str:
        for old, new in {"/tmp/prefect": str(self.folder / "prefect"), **self.known}.items():
            text = text.replace(old, new)
        text = text.replace(_STATE, str(self.state))
        text = text.replace("/opt/nightschool", str(DEPLOY)).replace("0.0.0.0", "127.0.0.1")
        names = "|".join(sorted(self.services, key=len, reverse=True))
        text = re.sub(rf"(?<=[/@=])({names})(?=:\d)", "127.0.0.1", text)
        return re.sub(
            rf"(?<!\d)({'|'.join(_PORTS)})(?!\d)", lambda match: self.ports[match.group()], text
        )

    def environment(self, name: str) -> dict[str, str]:
        """Nothing of this process's own but where the programs are."""
        given = environment_of(self.services[name])
        return {key: self.here(value) for key, value in given.items()} | {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.state),
            "TMPDIR": self.memory.name,
            "NO_PROXY": "127.0.0.1",
        }

    def command(self, name: str) -> list[str]:
        return [self.here(word) for word in command_of(self.services[name])]

    def once(self, name: str, **more: str) -> str:
        """Run a service that ends, with more variables; what it said. Fails unless it ends well."""
        done = subprocess.run(
            self.command(name),
            env=self.environment(name) | more,
            cwd=self.state,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """The service, healthy by its own health check; at the end told to stop, and ended."""
        log = self.folder / f"{name}.log"
        environment = self.environment(name)
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(name),
                env=environment,
                cwd=self.state,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._await_health(name, process, environment, log)
            yield process
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)
            said = log.read_text(errors="replace")[-2000:]
            wanted = {0, -signal.SIGTERM, 128 + signal.SIGTERM} | _ENDS.get(name, set())
            assert process.returncode in wanted, said
        finally:
            # Only this service's own session: what it started and left.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)

    def _await_health(
        self, name: str, process: subprocess.Popen[bytes], environment: dict[str, str], log: Path
    ) -> None:
        check = [self.here(word) for word in health_check_of(self.services[name])]
        deadline = time.monotonic() + START_SECONDS
        while True:
            asked = time.monotonic()
            if subprocess.run(check, env=environment, capture_output=True).returncode == 0:
                return
            said = f"{name}: {log.read_text(errors='replace')[-3000:]}"
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            # Each is a process of its own, Ray's with all of its libraries: the service starts
            # in what they leave of the processor.
            time.sleep(max(0.2, 2 * (time.monotonic() - asked)))

    def written(self) -> set[str]:
        """What was made in the containers' own folder, which is read-only there."""
        return {path.name for path in self.state.iterdir()}
