"""A real gateway process: its start, its end, and kill -9 in the middle of its work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import calls, chat, until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(
    settings: Settings, teacher: TeacherServer, port: int, **more: Any
) -> dict[str, str]:
    return {
        **os.environ,
        "NIGHTSCHOOL_STORAGE__URL": settings.storage.url,
        "NIGHTSCHOOL_DATABASE__URL": settings.database.url.get_secret_value(),
        "NIGHTSCHOOL_TEACHER__URL": f"{teacher.url}/v1",
        "NIGHTSCHOOL_GATEWAY__PORT": str(port),
        "NIGHTSCHOOL_GATEWAY__SPOOL": str(settings.gateway.spool),
        "NIGHTSCHOOL_GATEWAY__SNAPSHOT": str(settings.gateway.snapshot),
        "NIGHTSCHOOL_GATEWAY__ADAPTERS": str(settings.gateway.adapters),
        **{f"NIGHTSCHOOL_GATEWAY__{name.upper()}": str(value) for name, value in more.items()},
    }


def launch(env: dict[str, str], *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(command or ("-m", "serving.gateway"))],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def serving(http: aiohttp.ClientSession, url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(400):
        try:
            async with http.get(f"{url}/healthz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        assert process.poll() is None, process.communicate()[1]
        await asyncio.sleep(0.05)
    pytest.fail("the gateway did not start")


async def appended(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(f"{url}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line.startswith("nightschool_records_appended_total"):
                return int(float(line.split()[1]))
    return 0


async def test_kill_9_loses_no_acknowledged_record_and_sigterm_ships_all(
    settings: Settings, database: Database, teacher: TeacherServer, store: ObjectStore
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    answered: set[str] = set()

    async def talk(http: aiohttp.ClientSession, number: int) -> None:
        try:
            async with http.post(
                f"{url}/v1/chat/completions",
                json=chat(f"call {number}", stream=number % 2 == 0),
                headers={"x-session-id": f"s{number}"},
            ) as response:
                await response.read()
                answered.add(response.headers["x-nightschool-call-id"])
        except aiohttp.ClientError:
            pass

    # Shipped only at the end: what is acknowledged lies in the spool when the process is killed.
    process = launch(environment(settings, teacher, port, ship_seconds=1000))
    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, url, process)
            await asyncio.gather(*(talk(http, i) for i in range(30)))
            for _ in range(400):
                if await appended(http, url) == 30:
                    break
                await asyncio.sleep(0.02)
            else:
                pytest.fail("records were not acknowledged")
            acknowledged = set(answered)
            storm = asyncio.gather(*(talk(http, i) for i in range(30, 90)))
            await until(lambda: len(answered) >= 50)
            process.send_signal(signal.SIGKILL)
            await storm
        assert process.wait(10) == -signal.SIGKILL
        assert calls(store) == {}
    finally:
        process.kill()
        process.communicate()

    process = launch(environment(settings, teacher, port, ship_seconds=0.1))
    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, url, process)
            await until(lambda: acknowledged <= set(calls(store)))
            before = set(answered)
            await asyncio.gather(*(talk(http, i) for i in range(100, 110)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert acknowledged <= set(calls(store))  # and, by the way it is read, each once
    assert answered - before <= set(calls(store)), errors
    assert not list(settings.gateway.spool.rglob("ready-*")), errors


async def test_a_port_in_use_is_one_clear_line(
    settings: Settings, database: Database, teacher: TeacherServer
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        process = await asyncio.to_thread(launch, environment(settings, teacher, port))
        _, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("gateway:")] == [
        f"gateway: port {port} on 127.0.0.1 is in use: stop what uses it, or set [gateway] port"
    ]
    assert "Traceback" not in errors


def test_no_heavy_library_in_the_gateways_process() -> None:
    code = (
        "import json, sys; import serving.gateway.__main__; "
        "print(json.dumps(sorted(name for name in "
        "('torch', 'transformers', 'ray', 'prefect', 'evidently', 'sklearn') if name in sys.modules)))"
    )
    got = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert json.loads(got.stdout) == []
