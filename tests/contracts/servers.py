"""Real servers for the contract suites: PostgreSQL, and one that speaks the S3 protocol.

Each is a process of its own on a free port of this machine. It ends with the tests, also when they
are killed. Install them with ``infra/deploy/install-test-servers.sh``.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import boto3
import psycopg
import pytest

START_SECONDS = 60
_PORT_TRIES = 5
_set_process_option = ctypes.CDLL(None).prctl
_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class PostgresServer:
    port: int
    user: str
    _numbers: Iterator[int]

    def new_database(self, like: str = "template1") -> str:
        """Create a copy of a database that nobody is connected to, an empty one unless it is named;
        its SQLAlchemy URL."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=self.user, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {like}")  # type: ignore[arg-type]
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/{name}"


@dataclass(frozen=True)
class S3Server:
    endpoint_url: str
    access_key_id: str = "test"
    secret_access_key: str = "test"
    region: str = "us-east-1"

    def make_bucket(self, name: str) -> None:
        boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
        ).create_bucket(Bucket=name)


@contextmanager
def start_postgres() -> Iterator[PostgresServer]:
    """PostgreSQL from the system's packages. Skips the test where there is none, except in CI."""
    binaries = postgres_binaries()
    if binaries is None:
        message = "no PostgreSQL found: run infra/deploy/install-test-servers.sh"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    # PostgreSQL refuses to run as root, and another user cannot enter pytest's own folders.
    owner = unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="nightschool-postgres-"))
    try:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        data = folder / "data"
        name = owner.pw_name if owner is not None else pwd.getpwuid(os.getuid()).pw_name
        initdb = [binaries / "initdb", "-D", data, "-U", name, "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*initdb, "--locale=C", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=START_SECONDS,
            cwd=folder,
            **as_user(owner),
        )

        def command(port: int) -> list[str]:
            options = {
                "listen_addresses": "127.0.0.1",
                "port": port,
                "unix_socket_directories": "",
                "fsync": "off",
                "max_connections": 60,
            }
            pairs = [f"--{key}={value}" for key, value in options.items()]
            return [str(binaries / "postgres"), "-D", str(data), *pairs]

        def answers(port: int) -> bool:
            try:
                psycopg.connect(
                    host="127.0.0.1", port=port, user=name, dbname="postgres", connect_timeout=5
                ).close()
            except psycopg.OperationalError:
                return False
            return True

        with _running(command, answers, folder / "log", signal.SIGQUIT, owner) as port:
            yield PostgresServer(port, name, count())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def start_s3() -> Iterator[S3Server]:
    """An S3 server process, reached over HTTP like any other."""
    folder = Path(tempfile.mkdtemp(prefix="nightschool-s3-"))

    def command(port: int) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("s3_process.py")), str(port)]

    def answers(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    try:
        with _running(command, answers, folder / "log", signal.SIGKILL, None) as port:
            yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _running(
    command: Callable[[int], list[str]],
    answers: Callable[[int], bool],
    log: Path,
    stop: signal.Signals,
    owner: pwd.struct_passwd | None,
) -> Iterator[int]:
    """Start the process on a free port, wait for its first answer, and stop it at the end."""
    for _ in range(_PORT_TRIES):
        port = free_port()
        with log.open("ab") as output:
            process = subprocess.Popen(
                command(port),
                stdout=output,
                stderr=output,
                cwd=log.parent,
                preexec_fn=lambda: _set_process_option(_PARENT_DEATH_SIGNAL, int(stop)),
                **as_user(owner),
            )
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if answers(port):
                    yield port
                    return
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.send_signal(stop)
            process.wait(START_SECONDS)
    pytest.fail(f"the test server did not start:\n{log.read_text()[-2000:]}")


def postgres_binaries() -> Path | None:
    """The newest installed version's folder; Debian keeps it off the path."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int("".join(filter(str.isdigit, path.parts[4])) or 0),
    )
    if installed:
        return installed[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found and shutil.which("postgres") else None


def unprivileged_user() -> pwd.struct_passwd | None:
    """Who runs the server when we are root; None when we are not."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def as_user(owner: pwd.struct_passwd | None) -> dict[str, object]:
    if owner is None:
        return {}
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
