"""SIGTERM under streaming load: what began ends whole, and nobody new is misled."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.calls.codec import stored
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.engines.open import open_engine
from serving.gateway.holdings import Holdings
from serving.gateway.shipper import Shipper
from serving.gateway.spool import Spool
from serving.gateway.spool_files import ready_files
from tests.serving.gateway.test_process import environment, free_port, launch, serving
from tests.serving.gateway.test_spool import record
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import calls, chat, until


async def eventually(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await what():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def test_streams_end_whole_and_new_callers_are_told(
    settings: Settings, database: Database, teacher: TeacherServer, store: ObjectStore
) -> None:
    teacher.gate = asyncio.Event()
    text = "word " * 500
    teacher.say = lambda _: {"role": "assistant", "content": text.strip()}
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = launch(environment(settings, teacher, port, drain_notice_seconds=5))
    answers: dict[str, str] = {}

    async def talk(http: aiohttp.ClientSession, stream: bool) -> None:
        async with http.post(f"{url}/v1/chat/completions", json=chat("x", stream=stream)) as got:
            answers[got.headers["x-nightschool-call-id"]] = await got.text()
            assert got.status == 200

    async def readiness(http: aiohttp.ClientSession) -> tuple[int, dict[str, Any]]:
        async with http.get(f"{url}/readyz") as response:
            return response.status, await response.json()

    async def not_ready(http: aiohttp.ClientSession) -> bool:
        return (await readiness(http))[0] == 503

    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, url, process)
            assert (await readiness(http))[0] == 200
            talks = [asyncio.create_task(talk(http, i % 2 == 0)) for i in range(10)]
            await until(lambda: len(teacher.asked) == 10)
            process.send_signal(signal.SIGTERM)
            await eventually(lambda: not_ready(http))
            assert (await readiness(http))[1]["draining"] is True
            # A caller whose balancer has not noticed yet is still answered.
            late = asyncio.create_task(talk(http, True))
            await until(lambda: len(teacher.asked) == 11)

            async def refused() -> bool:
                try:
                    await readiness(http)
                except aiohttp.ClientConnectorError:
                    return True
                return False

            await eventually(refused)
            assert process.poll() is None
            teacher.gate.set()
            await asyncio.gather(*talks, late)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert len(answers) == 11
    for answer in answers.values():
        assert answer.count("word") == 500
        assert answer.endswith(("data: [DONE]\n\n", "}"))
    assert answers.keys() == calls(store).keys(), errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_never_ends_does_not_hold_the_process(
    settings: Settings, database: Database, teacher: TeacherServer, stream: bool
) -> None:
    teacher.gate = asyncio.Event()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = launch(environment(settings, teacher, port, drain_seconds=0.5))
    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, url, process)
            hanging = asyncio.create_task(
                http.post(f"{url}/v1/chat/completions", json=chat("x", stream=stream))
            )
            await until(lambda: teacher.asked)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
            with pytest.raises(aiohttp.ClientError):
                (await hanging).raise_for_status()
    finally:
        process.kill()
        process.communicate()


async def test_the_end_of_the_holdings_is_not_missed_when_there_is_news(
    settings: Settings, store: ObjectStore
) -> None:
    holdings = Holdings(open_engine(settings.engine), lambda: store, settings.gateway.adapters, 4)
    holdings.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the loop has looked, and waits
    holdings.recheck()
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await holdings.stop()


def test_a_store_that_hangs_is_left_behind(tmp_path: Path, store: ObjectStore) -> None:
    spool = Spool(tmp_path / "spool")
    asked, given_up = threading.Event(), threading.Event()

    def hang() -> ObjectStore:
        asked.set()
        given_up.wait(200)
        return store

    spool.append(stored(record("a")))
    shipper = Shipper(spool, hang, ship_seconds=600, ship_bytes=1 << 20)
    shipper.start()
    assert not shipper.stop(0.05)
    assert asked.wait(200)
    assert [path.name for path in ready_files(spool.folder)], "nothing is lost"
    given_up.set()


async def test_whatever_hangs_the_process_is_gone_in_time(
    settings: Settings, database: Database, teacher: TeacherServer
) -> None:
    port = free_port()
    script = (
        "import sys, threading\n"
        "from serving.gateway import __main__ as gateway, server\n"
        "server.Gateway._stop = lambda self, app: threading.Event().wait()\n"
        "gateway.AFTER_CALLS_SECONDS = 0.5\n"
        "sys.exit(gateway.main([]))"
    )
    process = launch(environment(settings, teacher, port, drain_seconds=0.1), "-c", script)
    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, f"http://127.0.0.1:{port}", process)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 200) == 1
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "<lambda>" in errors, "it shows where it hung"
