"""Processes of a deployment that are killed, stopped and started again while others talk to them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bench.support.machines import Machine
from infra.parent_death import end_with_parent
from tests.contracts.servers import as_user, free_port, postgres_binaries, unprivileged_user

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 300.0
STOP_SECONDS = 60.0


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder that every user may enter, as PostgreSQL's own must; removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f"nightschool-{name}-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


class Program:
    """One process and whatever it starts. It ends with this process, however that ends.

    It also ends with the thread that started it: start it from the main thread, or from one of an
    event loop's own, which live as long as the loop.

    Args:
        name: for messages and for its log file.
        command: what to run, in the repository's folder.
        logs: folder of the log file, which grows over restarts.
        answers: whether it serves now; must return soon.
        environment: added to this process's own.
        user: arguments of ``Popen`` that make it another user's process.
        url: where it serves, if it speaks HTTP.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        logs: Path,
        answers: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        user: Mapping[str, Any] | None = None,
        url: str = "",
    ) -> None:
        self.name = name
        self.url = url
        self.command = command
        self.environment = dict(environment or {})
        self.log = logs / f"{name}.log"
        self._answers = answers
        self._user = dict(user or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers. Raises RuntimeError when it does not."""
        if self.running:
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT if not self._user else self.log.parent,
                env={**os.environ, **self.environment},
                preexec_fn=partial(end_with_parent, signal.SIGKILL),
                **self._user,
            )
        if wait:
            self.await_answer()

    def await_answer(self, seconds: float = START_SECONDS) -> None:
        """Raises RuntimeError with the end of the log when it ended or never answers."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer:\n{self.tail()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, children too."""
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        # Also those whom somebody else must bury: a server takes its dead predecessor for alive.
        psutil.wait_procs(family[1:], STOP_SECONDS)
        if self._process is not None:
            self._process.wait(STOP_SECONDS)

    def pause(self) -> None:
        """SIGSTOP, children too: it keeps its sockets and says nothing."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM; the exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        if self.running:
            self._process.terminate()
        return self._process.wait(seconds)

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def _family(self) -> list[psutil.Process]:
        if not self.running:
            return []
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def serves(url: str) -> bool:
    """Whether an HTTP server gives any answer at ``url`` within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def accepts(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Postgres(Program):
    """A PostgreSQL server of its own, whose data outlives ``kill``.

    Args:
        folder: exists, and may be entered by every user.
        machine: where it runs; None: here, for callers on this machine.

    Raises:
        FileNotFoundError: no PostgreSQL is installed.
    """

    def __init__(self, folder: Path, machine: Machine | None = None) -> None:
        binaries = postgres_binaries()
        if binaries is None:
            raise FileNotFoundError("no PostgreSQL found: run infra/deploy/install-test-servers.sh")
        owner = unprivileged_user()
        home = folder / "postgres"
        home.mkdir()
        if owner is not None:
            os.chown(home, owner.pw_uid, owner.pw_gid)
        self.user = owner.pw_name if owner is not None else psutil.Process().username()
        self.port = free_port()
        data = home / "data"
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", self.user, "-A", "trust"]
        subprocess.run(
            [*initdb, "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=START_SECONDS,
            cwd=home,
            **as_user(owner),  # type: ignore[call-overload]
        )
        self.host = machine.address if machine else "127.0.0.1"
        if machine:
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        options = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            # A killed process loses nothing of what it wrote; only a power cut would.
            "fsync": "off",
            "max_connections": 60,
        }
        command = [str(binaries / "postgres"), "-D", str(data)]
        command += [f"--{key}={value}" for key, value in options.items()]
        super().__init__(
            "postgres",
            machine.command(command, self.user) if machine else command,
            logs=home,
            answers=self._takes_connections,
            user=None if machine else as_user(owner),
        )

    def new_database(self, name: str) -> str:
        """Create an empty database; its SQLAlchemy URL."""
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://{self.user}@{self.host}:{self.port}/{name}"

    def _conninfo(self, database: str) -> str:
        return (
            f"host={self.host} port={self.port} user={self.user} dbname={database} "
            "connect_timeout=2"
        )

    def _takes_connections(self) -> bool:
        try:
            psycopg.connect(self._conninfo("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True


def has_postgres() -> bool:
    return postgres_binaries() is not None


def gateway(
    name: str, folder: Path, settings: Mapping[str, Any], environment: Mapping[str, str]
) -> Program:
    """A gateway process with a snapshot and adapters of its own under ``folder``.

    Args:
        settings: ``"section.field"`` to value.
        environment: other variables.
    """
    home = folder / name
    home.mkdir()
    port = free_port()
    values = {
        "gateway.port": port,
        "gateway.snapshot": home / "routes.json",
        "gateway.adapters": home / "adapters",
        "gateway.spool": home / "spool",
        **settings,
    }
    variables = {
        f"NIGHTSCHOOL_{key.upper().replace('.', '__')}": str(value) for key, value in values.items()
    }
    url = f"http://127.0.0.1:{port}"
    return Program(
        name,
        [sys.executable, "-m", "serving.gateway"],
        logs=folder,
        answers=lambda: serves(f"{url}/healthz"),
        environment={**variables, **environment},
        url=url,
    )
