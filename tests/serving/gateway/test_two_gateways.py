"""Two gateway processes and one registry: what one learns the other learns, and both live without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.support.programs import Postgres, Program, gateway, has_postgres, scratch
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.registry.keys import create_key, hash_key, limit_key, revoke_key
from serving.registry.registry import Registry
from tests.serving.gateway.upstreams import EngineServer, TeacherServer
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    calls,
    chat,
    open_rollout,
    ready,
    set_route,
    until,
)

ANSWERED = "x-nightschool-answered-by"
CALL = "x-nightschool-call-id"


@dataclass
class Pair:
    """Two gateways of one registry."""

    first: Program
    second: Program
    http: aiohttp.ClientSession
    database: Database

    @property
    def both(self) -> tuple[Program, Program]:
        return self.first, self.second

    async def ask(
        self, program: Program, key: str = "", session: str = "s", **more: Any
    ) -> tuple[int, str, str]:
        """Status, who answered, call id."""
        headers = {"x-session-id": session, **({"Authorization": f"Bearer {key}"} if key else {})}
        async with self.http.post(
            f"{program.url}/v1/chat/completions", json=chat("on", **more), headers=headers
        ) as response:
            await response.read()
            got = response.headers
            return response.status, got.get(ANSWERED, ""), got.get(CALL, "")

    async def both_say(self, what: Callable[[Program], Awaitable[bool]]) -> None:
        """Wait until it is so at both."""
        deadline = time.monotonic() + 20
        for program in self.both:
            while not await what(program):
                assert time.monotonic() < deadline, program.tail()
                await asyncio.sleep(0.02)

    async def both_answer_by(self, name: str, key: str = "") -> None:
        async def so(program: Program) -> bool:
            return (await self.ask(program, key))[1] == name

        await self.both_say(so)

    async def look(self, program: Program) -> dict[str, Any]:
        async with self.http.get(f"{program.url}/readyz") as response:
            body: dict[str, Any] = await response.json()
            return body


Start = Callable[..., AbstractAsyncContextManager[Pair]]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may enter, unlike pytest's."""
    with scratch("pair") as folder:
        yield folder


@pytest.fixture
def pair(home: Path, settings: Settings, teacher: TeacherServer, engine: EngineServer) -> Start:
    """``async with pair(database, refresh_seconds=1) as running``."""

    @asynccontextmanager
    async def run(database: Database, **settings_of_gateway: Any) -> AsyncIterator[Pair]:
        given = {
            "storage.url": settings.storage.url,
            "database.url": database.url.render_as_string(hide_password=False),
            "database.busy_timeout_seconds": 2,
            "teacher.url": f"{teacher.url}/v1",
            "teacher.model": "teacher-model",
            "engine.url": engine.url,
            "gateway.audit_rate": 0,
            "gateway.ship_seconds": 0.1,
            **{f"gateway.{name}": value for name, value in settings_of_gateway.items()},
        }
        programs = [gateway(name, home, given, {}) for name in ("first", "second")]
        try:
            for program in programs:
                program.start(wait=False)
            for program in programs:
                await asyncio.to_thread(program.await_answer)
            async with aiohttp.ClientSession() as http:
                yield Pair(*programs, http, database)
        finally:
            for program in programs:
                program.kill()

    return run


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_one_gateway_does_the_other_follows(
    kind: str,
    request: pytest.FixtureRequest,
    pair: Start,
    settings: Settings,
    store: ObjectStore,
    engine: EngineServer,
    tmp_path: Path,
) -> None:
    if kind == "sqlite":
        database = Database(settings.database.url.get_secret_value())
    else:
        database = Database(request.getfixturevalue("postgres").new_database())
    database.upgrade()
    add_task(database)
    old = add_adapter(database, store, tmp_path, seed=1)
    new = add_adapter(database, store, tmp_path, seed=2)
    registry = Registry(database)
    key = create_key(database, "acme", "call", "test")
    async with pair(database, require_key=True, kill_error_burst=2) as running:
        await running.both_answer_by("teacher", key)

        # A route change.
        who = {"actor": "test", "why": "test"}
        registry.set_route("lights", 0, None, champion=old, **who)
        await running.both_answer_by(old, key)

        # A canary that fails at the first gateway only, which takes it off for everybody.
        open_rollout(database, new)
        set_route(
            database,
            champion=old,
            candidate=new,
            rollout_id="rollout-1",
            stage="canary",
            weight=1.0,
            version=2,
        )
        await running.both_answer_by(new, key)
        engine.mode = "error"
        for _ in range(2):
            assert (await running.ask(running.first, key))[1] == "teacher"
        engine.mode = "ok"
        await running.both_answer_by(old, key)
        assert registry.rollout("rollout-1").state == "rolled_back"
        assert registry.adapter(new).state == "rejected"

        # A rollback by a person.
        from serving.rollout.controller import rollback

        rollback(registry, "lights", "teacher", **who)
        await running.both_answer_by("teacher", key)

        # A limit, which each gateway counts for itself, and its end.
        async def says(status: int) -> None:
            async def so(program: Program) -> bool:
                return (await running.ask(program, key))[0] == status

            await running.both_say(so)

        limit_key(database, hash_key(key)[:12], {"requests_per_minute": 1})
        await says(429)
        limit_key(database, hash_key(key)[:12], {"requests_per_minute": None})
        await says(200)

        # A revoked key.
        revoke_key(database, hash_key(key)[:12])
        await says(401)
    database.close()


async def test_with_the_database_stopped_or_killed_both_serve_the_last_good_routes(
    home: Path, pair: Start, store: ObjectStore, engine: EngineServer, tmp_path: Path
) -> None:
    if not has_postgres():
        pytest.skip("no PostgreSQL found: run infra/deploy/install-test-servers.sh")
    server = Postgres(home)
    try:
        server.start()
        database = Database(server.new_database("registry"), busy_timeout_seconds=2)
        database.upgrade()
        add_task(database)
        name = add_adapter(database, store, tmp_path)
        set_route(database, champion=name)
        async with pair(database, refresh_seconds=0.1) as running:
            for program in running.both:
                await ready(running.http, program.url, name)

            # Stopped: its sockets stay open and say nothing.
            server.pause()

            async def failing(program: Program) -> bool:
                return not (await running.look(program))["registry_reachable"]

            await running.both_say(failing)
            await running.both_answer_by(name)
            server.resume()
            set_route(database, version=2)
            await running.both_answer_by("teacher")
            set_route(database, champion=name, version=3)
            await running.both_answer_by(name)

            # Killed, and one gateway with it: it starts from what it has on disk.
            server.kill()
            running.first.kill()
            await asyncio.to_thread(running.first.start)
            for program in running.both:
                body = await ready(running.http, program.url, name)
                assert body["ready"]
            await running.both_say(failing)
            await running.both_answer_by(name)

            # Back again: both catch up.
            await asyncio.to_thread(server.start)
            set_route(database, version=4)
            await running.both_answer_by("teacher")
        database.close()
    finally:
        server.kill()


async def test_everything_down_at_once_and_sigterm_still_ends_in_order(
    home: Path,
    pair: Start,
    store: ObjectStore,
    engine: EngineServer,
    teacher: TeacherServer,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """Registry, object storage and teacher are away: the small model answers, and nothing is lost."""
    if not has_postgres():
        pytest.skip("no PostgreSQL found: run infra/deploy/install-test-servers.sh")
    server = Postgres(home)
    objects = Path(settings.storage.url)
    try:
        server.start()
        database = Database(server.new_database("registry"), busy_timeout_seconds=2)
        database.upgrade()
        add_task(database)
        name = add_adapter(database, store, tmp_path)
        set_route(database, champion=name)
        async with pair(database, refresh_seconds=0.1) as running:
            for program in running.both:
                await ready(running.http, program.url, name)
            server.pause()
            teacher.mode = "error"
            put_away(objects)
            answered = set()
            for number in range(10):
                for program in running.both:
                    status, by, call = await running.ask(program, session=f"s{number}")
                    assert (status, by) == (200, name)
                    answered.add(call)
            engine.mode = "error"
            for program in running.both:
                status, _, _ = await running.ask(program)
                assert status >= 500  # nobody is left who could answer, and the caller is told
            engine.mode, teacher.mode = "ok", "ok"

            # A call that is under way is answered, then the gateway goes, database or not.
            engine.pause_seconds, before = 1.0, len(engine.prompts)
            asked = asyncio.create_task(running.ask(running.first))
            await until(lambda: len(engine.prompts) > before)
            ending = asyncio.create_task(asyncio.to_thread(running.first.terminate))
            status, by, call = await asked
            assert (status, by) == (200, name)
            answered.add(call)
            assert await ending == 0, running.first.tail()

            bring_back(objects)
            server.resume()
            await asyncio.to_thread(running.first.start)
            await until(lambda: answered <= set(calls(store)))
            for program in running.both:
                assert await asyncio.to_thread(program.terminate) == 0, program.tail()
        assert answered <= set(calls(store))  # and, by the way it is read, each once
        database.close()
    finally:
        server.resume()
        server.kill()


def put_away(folder: Path) -> None:
    """Nothing can be read or written where the folder was, whoever tries."""
    folder.rename(folder.with_name("away"))
    folder.write_text("not a folder")


def bring_back(folder: Path) -> None:
    folder.unlink()
    folder.with_name("away").rename(folder)
