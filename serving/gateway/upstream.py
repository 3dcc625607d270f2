"""The teacher: any OpenAI-compatible endpoint, asked over HTTP with bounded time and concurrency."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from infra.settings.serving import Teacher as TeacherSettings
from serving.breaker import CircuitBreaker
from serving.gateway.posting import Posted, Poster
from serving.gateway.problems import GatewayError, teacher_unavailable
from serving.gateway.retries import RETRIED_STATUSES, RetryBudget, pause_seconds

MAX_ANSWER_BYTES = 64 << 20
# Of the caller's headers, only what OpenAI's API gives a meaning to.
_PASSED_ON = ("openai-organization", "openai-project", "openai-beta", "idempotency-key", "accept")
_PASSED_BACK = (
    "retry-after",
    "x-request-id",
    "openai-processing-ms",
    "openai-version",
    "openai-model",
)
CONNECT_SECONDS = 10.0
CHAT = "/chat/completions"
Answer = aiohttp.ClientResponse | Posted


@dataclass(frozen=True)
class Reply:
    """A whole answer of the teacher, whatever its status."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]

    def json(self) -> dict[str, Any] | None:
        return read_object(self.body)


class Teacher:
    """Speaks to the large model. For one event loop.

    All methods raise GatewayError: 502 unreachable, 503 circuit open, 504 too slow.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        breaker: CircuitBreaker | None = None,
        beside: Teacher | None = None,
    ) -> None:
        """Args: beside: shares its slots, and has a breaker and retries of its own."""
        self.settings = settings
        self.breaker = breaker or CircuitBreaker()
        self._url = settings.url.rstrip("/")
        self._slots: asyncio.Semaphore = (
            beside._slots if beside else asyncio.Semaphore(settings.max_concurrency)
        )
        self._session: aiohttp.ClientSession | None = None
        self._chats: Poster | None = None
        self._budget = RetryBudget(settings.retry_share)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def headers(self, caller: Mapping[str, str], own_key: bool) -> dict[str, str]:
        """Headers for the teacher.

        Args:
            caller: what the caller sent.
            own_key: whether the caller's key is one of ours; such a key is never forwarded.
        """
        passed = {name: caller[name] for name in _PASSED_ON if name in caller}
        if self.settings.api_key is not None:
            passed["authorization"] = f"Bearer {self.settings.api_key.get_secret_value()}"
        elif not own_key and "authorization" in caller:
            passed["authorization"] = caller["authorization"]
        return passed

    async def ask(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        """A chat completion as a whole, any status."""
        async with self.chat(body, headers) as response:
            return await read_reply(response)

    def chat(
        self, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Answer]:
        """A chat completion whose body is still to be read."""
        return self.open("POST", CHAT, orjson.dumps(body), headers)

    @asynccontextmanager
    async def open(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """The teacher's response once its headers are there; the body is the caller's to read.

        Failures while the body is read come out as GatewayError too.
        """
        if not self.breaker.allow():
            raise teacher_unavailable("it failed several times in a row; trying again soon", 503)
        answered = False
        try:
            async with asyncio.timeout(self.settings.timeout_seconds), self._slots:
                response = await self._first_answer(method, path, data, headers)
                answered = True
                async with response:
                    # 429 and 4xx are answers; 5xx are failures of the teacher.
                    if response.status >= 500:
                        self.breaker.failed()
                    else:
                        self.breaker.succeeded()
                    yield response
        except TimeoutError:
            if not answered:  # else it may be the caller who reads slowly
                self.breaker.failed()
            seconds = self.settings.timeout_seconds
            raise teacher_unavailable(f"no answer within {seconds:g} seconds", 504) from None
        except (aiohttp.ClientError, OSError) as error:
            self.breaker.failed()
            raise teacher_unavailable(type(error).__name__) from error

    async def _first_answer(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        """The first answer that is one, or the last failure: asked again within the budget.

        What changes something on the teacher's server is sent again only where nobody can have worked
        on it; a chat that was worked on twice costs twice and harms nobody.
        """
        self._budget.called()
        harmless = method == "GET" or path == CHAT or "idempotency-key" in headers
        for attempt in range(1, self.settings.retries + 1):
            try:
                response = await self._send(method, path, data, headers)
            except aiohttp.ClientConnectionError as error:
                unsent = isinstance(error, aiohttp.ClientConnectorError)
                if not (harmless or unsent) or not self._budget.take():
                    raise
            else:
                retried = harmless and response.status in RETRIED_STATUSES
                if not retried or not self._budget.take():
                    return response
                response.close()
            await asyncio.sleep(pause_seconds(attempt))
        return await self._send(method, path, data, headers)

    async def _send(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        session = self._opened()
        sent = {**headers, "content-type": headers.get("content-type", "application/json")}
        for attempt in (1, 2):
            try:
                if data is not None and path == CHAT and method == "POST":
                    return await self._poster(session).post(data, sent)
                return await session.request(
                    method,
                    self._url + path,
                    data=data,
                    headers=sent,
                    allow_redirects=False,
                )
            except aiohttp.ServerDisconnectedError:
                # A kept-alive connection that the server had just closed: nothing was answered.
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def _poster(self, session: aiohttp.ClientSession) -> Poster:
        if self._chats is None:
            self._chats = Poster(session, self._url + CHAT)
        return self._chats

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._chats = None
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                # A cookie of one caller's answer must not go along with another's request.
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
                trust_env=False,
            )
        return self._session


async def read_reply(response: Answer) -> Reply:
    """The rest of a response, bounded. Raises GatewayError for one that is too long."""
    content = response.content
    if content.is_eof():
        # It came in one piece, and need not be waited for.
        body = content.read_nowait()
        if len(body) > MAX_ANSWER_BYTES:
            raise _too_long()
    else:
        parts: list[bytes] = []
        size = 0
        async for part in content.iter_any():
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise _too_long()
            parts.append(part)
        body = b"".join(parts)
    return Reply(
        response.status,
        body,
        response.headers.get("Content-Type", "application/json"),
        passed_back(response.headers),
    )


def _too_long() -> GatewayError:
    return GatewayError(502, "the large model's answer is too long", kind="api_error")


def passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    """What of the teacher's headers the caller gets, rate limits included."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() in _PASSED_BACK or name.lower().startswith("x-ratelimit-")
    }


def read_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in what an upstream sent, or None. Lenient: an upstream may be sloppy."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
