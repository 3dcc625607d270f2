"""Whatever is asked over a real socket, the answer is one that the OpenAPI document names."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import urllib.parse
from collections.abc import Iterator

import jsonschema
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.operating import RegistryApi
from serving.registry.reading.app import MAX_LINE_BYTES, ReadApi
from serving.registry.reading.openapi import openapi_document
from serving.registry.reading.operations import OPERATIONS
from serving.registry.registry import Registry
from tests.serving.registry.world import add_adapter, add_task

DOCUMENT = openapi_document(require_key=False)
PATHS = [*DOCUMENT["paths"], "/v1/{task}", "/{task}"]
NAMES = sorted({name for one in OPERATIONS for name in one.query_parameters} | {"of", "kind"})
text = st.text(max_size=60) | st.sampled_from(["mail", "0", "-1", "9" * 30, "null", "W10", "logs/"])


@pytest.fixture
def port(each_database: Database, store: ObjectStore) -> Iterator[int]:
    """The API in a thread, with something to find."""
    add_task(each_database, "mail")
    for n in range(3):
        add_adapter(Registry(each_database), "mail", n)
    loop, found, stop = asyncio.new_event_loop(), [], asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        app = ReadApi(RegistryApi(require_key=False), each_database, lambda: store).app()
        runner = web.AppRunner(app, max_line_size=MAX_LINE_BYTES, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.append(runner.addresses[0][1])
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(PATHS),
    value=text,
    query=st.lists(st.tuples(st.sampled_from([*NAMES, "x"]), text), max_size=4),
    method=st.sampled_from(["GET"] * 8 + ["POST", "DELETE", "HEAD"]),
)
def test_every_answer_is_a_documented_one(
    port: int, path: str, value: str, query: list[tuple[str, str]], method: str
) -> None:
    filled = path
    for name in ("task", "adapter", "digest", "rollout"):
        filled = filled.replace(f"{{{name}}}", urllib.parse.quote(value or "-", safe=""))
    target = filled + ("?" + urllib.parse.urlencode(query) if query else "")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.headers.get_content_type() == "application/json"
    if method != "GET":
        assert answer.status in (404, 405)
        return
    assert answer.status in (200, 400, 404)
    if path not in DOCUMENT["paths"]:
        assert answer.status in (400, 404)
        return
    said = json.loads(body)
    responses = DOCUMENT["paths"][path]["get"]["responses"]
    if str(answer.status) not in responses:
        # A path whose name is made of dots or slashes is another path.
        assert answer.status == 404
        return
    schema = responses[str(answer.status)]["content"]["application/json"]["schema"]
    jsonschema.validate(said, {**schema, "components": DOCUMENT["components"]})
