"""A whole small deployment as processes: two gateways, engine, teacher, database, object store."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp

from bench.support.programs import (
    Postgres,
    Program,
    accepts,
    gateway,
    has_postgres,
    serves,
)
from bench.support.tiny_adapters import make_base, teach
from infra.calls.codec import parse_line, read_lines
from infra.calls.record import CallRecord
from infra.database.open import Database
from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.serving import Storage
from serving.registry.registry import Registry
from tests.contracts.servers import S3Server, free_port
from tests.serving.gateway.world import add_task, chat, register

TASK = "lights"
KNOWN = chat("switch the light on")
ANSWERS = ("alpha", "beta")
THRESHOLD = -0.3
DISK_BYTES = 16 << 20
BUCKET = "chaos"
RECOVER_SECONDS = 60.0
_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class Deployment:
    """Made stopped; ``start`` starts it, ``close`` ends it all.

    Args:
        folder: for everything; every user may enter it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: dict[str, str] = {}
        """Target or action that is not to be had here, and why."""
        self._stack = contextlib.ExitStack()
        self.programs: dict[str, Program] = {}
        self.adapters: dict[str, str] = {}
        """Name to recognisable answer."""
        self._clock = folder / "clock"
        self._disk = folder / "disk"
        self._database_url = ""
        self._storage: dict[str, Any] = {}

    @property
    def gateways(self) -> list[Program]:
        return [self.programs["first"], self.programs["second"]]

    def start(self) -> None:
        """Raises RuntimeError when a process does not start."""
        try:
            self._start_database()
            store = self._start_store()
            self._make_adapters(store)
            self._start_upstreams()
            self._start_gateways()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for program in self.programs.values():
            program.resume()
            program.kill()
        self._stack.close()

    def open_database(self) -> Database:
        """A handle of the caller's own, for the operator's acts."""
        return Database(self._database_url, busy_timeout_seconds=5)

    def store(self) -> ObjectStore:
        """Past the relay: what is there, whoever is cut off from it."""
        direct = {**self._storage}
        if "objects" in self.programs:
            direct["endpoint_url"] = self.programs["objects"].url
        return open_store(Storage.model_validate(direct))

    # What can be done to it

    async def set_teacher(self, mode: str) -> None:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.programs['teacher'].url}/mode", data=mode) as response,
        ):
            response.raise_for_status()

    def set_clock(self, seconds: str) -> None:
        """Move the first gateway's clock off by so many seconds ("+0": none)."""
        part = self._clock.with_suffix(".part")
        part.write_text(f"{int(seconds):+d}\n")
        part.replace(self._clock)

    def fill_disk(self) -> None:
        """Leave no byte on the second gateway's disk."""
        with contextlib.suppress(OSError), (self._disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
        with contextlib.suppress(OSError), (self._disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"\0")

    def free_disk(self) -> None:
        (self._disk / "filler").unlink(missing_ok=True)

    async def recovered(self) -> None:
        """Wait until every process serves and both gateways have routes, adapters and a registry.

        Raises RuntimeError when it takes too long.
        """
        deadline = time.monotonic() + RECOVER_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            for program in self.gateways:
                while not await _is_ready(http, program):
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"{program.name} did not recover:\n{program.tail()}")
                    await asyncio.sleep(0.05)

    # What is found in it

    def recorded(self) -> dict[str, list[str]]:
        """Call id to who answered, once per record in object storage; a damaged line raises."""
        found: dict[str, list[str]] = {}
        store = self.store()
        for info in store.list("logs/v1/"):
            for line in read_lines(BytesIO(store.get(info.key))):
                if not isinstance(line.content, bytes):
                    raise RuntimeError(f"{info.key} has a damaged line: {line.content}")
                record = parse_line(line.content)
                if isinstance(record, CallRecord):
                    who = record.answered_by.adapter or "teacher"
                    found.setdefault(record.id, []).append(who)
        return found

    def unshipped(self) -> list[Path]:
        """Files of the gateways' spools that hold records."""
        spools = [self.folder / "first" / "spool", self._spool_of_second()]
        return [
            path
            for spool in spools
            for pattern in ("ready-*", "open-*")
            for path in spool.rglob(pattern)
        ]

    # How it is made

    def _start_database(self) -> None:
        if has_postgres():
            server = Postgres(self.folder)
            self.programs["database"] = server
            server.start()
            self._database_url = server.new_database("registry")
        else:
            self.missing["database"] = "no PostgreSQL is installed; SQLite is no process"
            self._database_url = f"sqlite:///{self.folder}/registry.db"
        database = self.open_database()
        database.upgrade()
        database.close()

    def _start_store(self) -> ObjectStore:
        if importlib.util.find_spec("moto") is None:
            self.missing["store"] = "no S3 server is installed; a directory is no process"
            self._storage = {"url": str(self.folder / "objects")}
            return self.store()
        port, outside = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        self._add(
            Program(
                "objects",
                [sys.executable, "-m", "tests.contracts.s3_process", str(port)],
                logs=self.folder,
                answers=lambda: serves(url),
                url=url,
            )
        )
        # kill -9 of the server itself would lose its objects, which it keeps in memory.
        self._add(
            Program(
                "store",
                [sys.executable, "-m", "bench.support.relay", str(outside), str(port)],
                logs=self.folder,
                answers=lambda: accepts(outside),
                url=f"http://127.0.0.1:{outside}",
            )
        )
        keys = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
        S3Server(url).make_bucket(BUCKET)
        self._storage = {
            "url": f"s3://{BUCKET}/here",
            "endpoint_url": self.programs["store"].url,
            **keys,
        }
        return self.store()

    def _make_adapters(self, store: ObjectStore) -> None:
        base = make_base(self.folder / "base")
        database = self.open_database()
        add_task(database, TASK, KNOWN)
        for answer in ANSWERS:
            manifest, folder = teach(base, self.folder, TASK, KNOWN, answer)
            location = f"adapters/{TASK}/{manifest.digest}"
            for path in sorted(folder.iterdir()):
                store.put(f"{location}/{path.name}", path.read_bytes())
            register(database, manifest, location, THRESHOLD)
            self.adapters[manifest.name] = answer
        first = next(iter(self.adapters))
        Registry(database).set_route(TASK, 0, None, actor="chaos", why="start", champion=first)
        database.close()

    def _start_upstreams(self) -> None:
        port, engine = free_port(), free_port()
        self._add(
            Program(
                "teacher",
                [sys.executable, "-m", "bench.support.faulty_teacher", str(port)],
                logs=self.folder,
                answers=lambda: serves(f"http://127.0.0.1:{port}/"),
                url=f"http://127.0.0.1:{port}",
            )
        )
        command = [sys.executable, "-m", "serving.engines.embedded", "--precision", "float32"]
        command += ["--model", str(self.folder / "base"), "--port", str(engine)]
        self._add(
            Program(
                "engine",
                command,
                logs=self.folder,
                answers=lambda: serves(f"http://127.0.0.1:{engine}/health"),
                url=f"http://127.0.0.1:{engine}",
                environment={"OMP_NUM_THREADS": "1"},
            )
        )

    def _start_gateways(self) -> None:
        self._mount_disk()
        settings = {
            **{f"storage.{name}": value for name, value in self._storage.items()},
            "database.url": self._database_url,
            "database.busy_timeout_seconds": 3,
            "teacher.url": f"{self.programs['teacher'].url}/v1",
            "teacher.timeout_seconds": 2,
            "engine.url": self.programs["engine"].url,
            "gateway.small_model_timeout_seconds": 3,
            "gateway.ship_seconds": 0.5,
            "gateway.read_timeout_seconds": 3,
            "gateway.keepalive_timeout_seconds": 5,
            # An answer that is given is an answer that is logged.
            "gateway.unlogged": "refuse",
            "gateway.log_wait_seconds": 0.5,
        }
        clocked: dict[str, str] = {}
        if _FAKETIME:
            self.set_clock("0")
            clocked = {
                "LD_PRELOAD": str(_FAKETIME[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_NO_CACHE": "1",
                # A step changes what time it is, and not how fast it goes by.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        else:
            self.missing["clock"] = "libfaketime is not installed (package faketime)"
        second = {**settings, "gateway.spool": self._spool_of_second()}
        self._add(gateway("first", self.folder, settings, clocked), wait=False)
        self._add(gateway("second", self.folder, second, {}), wait=False)
        for program in (self.programs["engine"], *self.gateways):
            program.await_answer()

    def _mount_disk(self) -> None:
        self._disk.mkdir()
        if os.getuid() != 0:
            self.missing["fill"] = "only root may mount a small disk"
            return
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"]
        done = subprocess.run(
            ["mount", *options, str(self._disk)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            self.missing["fill"] = f"no small disk can be mounted: {done.stderr.strip()[:100]}"
            return
        self._stack.callback(subprocess.run, ["umount", "-l", str(self._disk)], check=False)

    def _spool_of_second(self) -> Path:
        return self._disk / "spool"

    def _add(self, program: Program, *, wait: bool = True) -> None:
        self.programs[program.name] = program
        program.start(wait=wait and program.name != "engine")


async def _is_ready(http: aiohttp.ClientSession, program: Program) -> bool:
    try:
        async with http.get(f"{program.url}/readyz") as response:
            body = await response.json()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return False
    return bool(body["ready"] and body["registry_reachable"] and body["adapters_ready"])


@contextlib.contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A running deployment, ended at the end."""
    made = Deployment(folder)
    made.start()
    try:
        yield made
    finally:
        made.close()
