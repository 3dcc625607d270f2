"""The gateway's own description: it names what is served, and what is served keeps to it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import checks as known_checks

from infra.database.open import Database
from infra.settings.model import Settings
from serving.gateway.openapi import document
from serving.gateway.server import Gateway
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.raw import LEAKS
from tests.serving.gateway.test_process import environment, free_port, launch, serving
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import chat

# Everything else is the teacher's, or nobody's.
PASSED = {"/v1/{path}", "/{path}"}
EXAMPLES = 40
# What a method is not declared for is the teacher's to answer, and keys are a setting.
EXCLUDED = ("unsupported_method", "ignored_auth")


def test_the_document_is_openapi() -> None:
    OpenAPIV31SpecValidator(document("1")).validate()


async def test_every_path_that_is_served_is_described(settings: Settings) -> None:
    app = Gateway(settings).app()
    served: dict[str, set[str]] = {}
    for route in app.router.routes():
        assert route.resource is not None
        path = re.sub(r":[^}]+}", "}", route.resource.canonical)
        if path not in PASSED and route.method != "HEAD":
            served.setdefault(path, set()).add(route.method.lower())
    described = {path: set(item) for path, item in document("1")["paths"].items()}
    assert served == described


async def test_real_answers_are_as_described(start: Start, teacher: TeacherServer) -> None:
    async with start() as running:
        async with running.http.get(f"{running.url}/openapi.json") as response:
            found = await response.json()
        assert found["info"]["version"] != ""

        def check(body: Any, path: str, method: str = "post", status: int = 200) -> None:
            answer = found["paths"][path][method]["responses"][str(status)]
            schema = answer["content"]["application/json"]["schema"]
            whole = {**schema, "components": found["components"]}
            Draft202012Validator(whole).validate(body)

        status, body, _ = await running.ask(chat("x"))
        check(body, "/v1/chat/completions")
        status, error, _ = await running.ask(b"{")
        check(error, "/v1/chat/completions", status=status)
        status, kept, _ = await running.ask({"id": body["id"], "score": 1}, path="/v1/feedback")
        check(kept, "/v1/feedback")
        for path in ("/v1/models", "/healthz", "/readyz"):
            async with running.http.get(running.url + path) as response:
                check(await response.json(), path, "get")
        with pytest.raises(Exception, match="choices"):
            check({"id": "x"}, "/v1/chat/completions")


def openai_shape(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Every refusal is an error object, and none tells of our insides."""
    if response.status_code < 400:
        return
    assert response.status_code < 500, "a server error"
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys(), error
    assert not [leak for leak in LEAKS if leak in response.content], response.content


async def test_schemathesis_finds_nothing(
    settings: Settings, database: Database, teacher: TeacherServer
) -> None:
    teacher.say = lambda _: {"role": "assistant", "content": "yes"}
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = launch(environment(settings, teacher, port, max_body_bytes=1 << 20))
    excluded = [getattr(known_checks, name, None) for name in EXCLUDED]
    quick = examples(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def search() -> int:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        count = 0
        for found in schema.get_all_operations():
            operation = found.ok()
            modes = [schemathesis.GenerationMode.POSITIVE]
            if operation.method == "post":
                modes.append(schemathesis.GenerationMode.NEGATIVE)
            for mode in modes:

                def check(case: schemathesis.Case) -> None:
                    nonlocal count
                    count += 1
                    answer = case.call(base_url=url, timeout=20)
                    left_out = [*excluded]
                    if answer.status_code == 413:
                        # Too large is a refusal too, whatever else is wrong with it.
                        left_out.append(known_checks.negative_data_rejection)
                    case.validate_response(
                        answer,
                        additional_checks=[openai_shape],
                        excluded_checks=[one for one in left_out if one is not None],
                    )

                quick(given(case=operation.as_strategy(generation_mode=mode))(check))()
        return count

    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, url, process)
        assert await asyncio.to_thread(search) > 4 * EXAMPLES
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "Traceback" not in errors
