"""What is no HTTP, or HTTP meant to be read in two ways, gets a 4xx in OpenAI's shape and goes no further."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from infra.database.open import Database
from infra.settings.model import Settings
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.raw import LEAKS, exchange, post
from tests.serving.gateway.test_process import environment, free_port, launch, serving
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import chat

GOOD = json.dumps(chat("on")).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"

MALFORMED = {
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another version": b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nul in a header": HEAD + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "nul in the target": b"GET /v1/fi\x00les HTTP/1.1\r\nHost: x\r\n\r\n",
    "bare cr": HEAD + b"X-A: a\rContent-Length: 5\r\n\r\n",
    "bare lf in a header": HEAD + b"X-A: a\nX B: c\r\n\r\n",
    "folded header": HEAD + b"X-A: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": HEAD + b"Content-Length : 5\r\n\r\n12345",
    "no colon": HEAD + b"nonsense\r\n\r\n",
    "empty header name": HEAD + b": x\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
    "a list of lengths": HEAD + b"Content-Length: 5, 6\r\n\r\n123456",
    "length and chunks": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKED,
    "chunks and length": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    + CHUNKED,
    "chunks not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +5\r\n\r\n12345",
    "a length in hex": HEAD + b"Content-Length: 0x5\r\n\r\n12345",
    "a length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\n1234567890",
    "a length beyond numbers": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "a long header": HEAD + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "a long target": b"GET /v1/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long method": b"A" * 100_000 + b" /v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unmet expectation": HEAD + b"Expect: <script>\r\nContent-Length: 0\r\n\r\n",
    "chunk size is no number": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "chunk without an end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "not gzip": post(b"not gzip at all", "Content-Encoding: gzip"),
    "cut gzip": post(gzip.compress(GOOD)[:20], "Content-Encoding: gzip"),
    "unknown compression": post(GOOD[:-1], "Content-Encoding: snappy"),
}
PATHS = (
    "/v1/../metrics",
    "/v1/files/../../etc/passwd",
    "/v1/files/%2e%2e/%2e%2e/etc/passwd",
    "/v1/files/..%2f..%2fetc",
    "/v1/files/a%00b",
    "/v1/files/a%0d%0aX-Evil:%20yes",
    "/v1//etc/passwd",
    "/v1/files/\\..\\x",
    "/v1/files/a;b",
    "/v1/files/%",
    "/v1/files/%252e%252e/x",
    "/v1/files/%2E%2E",
    "/v1/files%2f..%2fmodels",
    "/v1/%2fetc",
    "/v1/files/%zz",
    "/v1/models/../../etc/passwd",
    "/v1/models/%2e%2e%2f%2e%2e%2fadmin",
    "http://evil.example/v1/files/x",
    "http://evil.example:99999/v1/files/x",
    "http://[::1/v1/files/x",
    "/v2/other",
    "/",
    "//",
    "*",
    "/v1/files/\xff\xfe",
)


@pytest.fixture
async def running(start: Start) -> AsyncIterator[Running]:
    async with start(max_body_bytes=1 << 20) as made:
        yield made
        # Whatever was sent, the next caller is answered.
        status, _, _ = await made.ask(chat("and now?"))
        assert status == 200


async def test_malformed_requests(running: Running, teacher: TeacherServer) -> None:
    wrong = {}
    for name, raw in MALFORMED.items():
        answer = await exchange(running.url, raw)
        try:
            answer.error()
        except (AssertionError, ValueError, KeyError) as error:
            wrong[name] = (answer.status, str(error)[:200])
    assert wrong == {}
    assert teacher.asked == []


async def test_paths_that_lead_elsewhere(running: Running, teacher: TeacherServer) -> None:
    wrong = {}
    for path in PATHS:
        raw = f"GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n".encode("latin-1")
        answer = await exchange(running.url, raw)
        try:
            answer.error()
        except (AssertionError, ValueError, KeyError) as error:
            wrong[path[:60]] = (answer.status, str(error)[:200])
    assert wrong == {}
    assert teacher.paths == []


async def test_a_smuggled_request_is_not_a_second_one(
    running: Running, teacher: TeacherServer
) -> None:
    second = post(GOOD)
    for raw in (
        HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
        HEAD + b"Content-Length: 4\r\nContent-Length: 0\r\n\r\nabcd" + second,
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + second,
        HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + second,
    ):
        (await exchange(running.url, raw)).error()
    assert teacher.asked == []


async def test_headers_of_the_caller_do_not_reach_the_teacher(
    running: Running, teacher: TeacherServer
) -> None:
    lines = (
        "X-Forwarded-For: 10.0.0.1",
        "Cookie: a=b",
        "X-Evil: yes",
        "Accept: application/json",
        "Proxy-Authorization: Basic eA==",
        "Connection: keep-alive, X-Evil",
        "Upgrade: websocket",
    )
    answer = await exchange(running.url, post(GOOD, *lines))
    assert answer.status == 200
    sent = {name.lower() for name in teacher.headers[-1]}
    assert sent <= {
        "accept",
        "accept-encoding",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    }


async def test_the_query_goes_on_as_it_came(running: Running, teacher: TeacherServer) -> None:
    query = "after=a%26b%3Dc&limit=2&x=%0d%0aX-Evil:%20yes"
    raw = f"GET /v1/files/x?{query} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n".encode()
    assert (await exchange(running.url, raw)).status == 200
    path, _, sent = teacher.paths[-1].partition("?")
    assert path == "/v1/files/x"
    assert sent.lower() == query.lower()


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "OPTIONS"])
async def test_methods_that_no_openai_path_takes(
    running: Running, teacher: TeacherServer, method: str
) -> None:
    raw = f"{method} /v1/files/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n".encode()
    (await exchange(running.url, raw)).error()
    assert teacher.paths == []


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10


async def test_50_mb_are_refused_without_being_held(
    settings: Settings, database: Database, teacher: TeacherServer
) -> None:
    size, part = 50 << 20, b" " * (1 << 20)
    chunk = b"%x\r\n%b\r\n" % (len(part), part)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = launch(environment(settings, teacher, port, max_body_bytes=1 << 20))
    try:
        async with aiohttp.ClientSession() as http:
            await serving(http, url, process)
        small = post(b" " * (2 << 20))
        assert (await exchange(url, small)).status == 413
        before = peak_bytes(process.pid)
        for parts in (
            [post(b"", f"Content-Length: {size}", length=False), *[part] * 50],
            [post(b"", "Transfer-Encoding: chunked", length=False), *[chunk] * 50],
            [post(gzip.compress(part * 50), "Content-Encoding: gzip")],
        ):
            answer = await exchange(url, *parts)
            assert answer.status == 413
            assert answer.error()["code"] == "request_too_large"
        # Who holds a body grows by all of it; what is still loaded after the start is less than that.
        assert peak_bytes(process.pid) - before < size - (10 << 20)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert teacher.asked == []
    assert "Traceback" not in errors


async def test_giants_within_the_limit(start: Start, teacher: TeacherServer) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    deep: dict = {}
    for _ in range(200):
        deep = {"properties": {"a": deep}}
    wide = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(1024)]
    async with start() as running:
        for body, code in (
            (chat("x", tools=[tool] * 5000), None),
            (
                chat("x", tools=[{**tool, "function": {"name": "f", "parameters": deep}}]),
                "too_deep",
            ),
            (chat("x", messages=[{"role": "user", "content": "x"}] * 10_001), None),
            (chat("x", metadata={"task": "t" * 201}), None),
            (chat("x", metadata={"task": "a\x00b"}), None),
        ):
            status, answer, _ = await running.ask(body)
            assert status == 400
            assert answer["error"]["code"] == code
        assert teacher.asked == []
        assert (await running.ask(chat("x", tools=wide)))[0] == 200


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    *("model", "messages", "tools", "tool_choice", "response_format", "stream", "metadata"),
    *("stream_options", "user", "n", "stop", "logprobs", "max_tokens", "functions", "modalities"),
    *("temperature", "parallel_tool_calls"),
]
bodies = st.one_of(
    st.binary(max_size=200),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).map(
        lambda body: json.dumps({"messages": [{"role": "user", "content": "x"}], **body}).encode()
    ),
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "name", "audio", "tool_call_id"]), values
    ).map(
        lambda more: json.dumps({"messages": [{"role": "user", "content": "x", **more}]}).encode()
    ),
    st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + 1 :]
    ),
)
HEADERS = [
    *("Authorization", "x-api-key", "x-session-id", "x-task", "Content-Type", "Content-Encoding"),
    *("Accept", "Expect", "traceparent", "idempotency-key", "openai-organization", "X-Custom"),
]
names = st.sampled_from(HEADERS)
header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60
)


async def test_any_body_and_any_headers(running: Running, teacher: TeacherServer) -> None:
    teacher.say = lambda _: {"role": "assistant", "content": "yes"}
    loop = asyncio.get_running_loop()

    def check(body: bytes, headers: list[tuple[str, str]], path: str) -> None:
        lines = [f"{name}: {value}" for name, value in headers]
        raw = post(body, *lines, path=path)
        answer = asyncio.run_coroutine_threadsafe(exchange(running.url, raw), loop).result(60)
        if answer.status == 200:
            assert not [leak for leak in LEAKS if leak in answer.body]
        else:
            answer.error()

    run = given(
        bodies,
        st.lists(st.tuples(names, header_values), max_size=4, unique_by=lambda pair: pair[0]),
        st.sampled_from(["/v1/chat/completions"] * 3 + ["/v1/feedback", "/v1/embeddings"]),
    )(check)
    quick = examples(
        max_examples=250,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(quick(run))
