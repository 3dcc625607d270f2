"""A steady stream of calls, and what their callers saw."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from bench.support.chaos_verdict import TEACHER, Attempt
from bench.support.programs import Program

ANSWERED_HEADER = "x-nightschool-answered-by"
CALL_HEADER = "x-nightschool-call-id"
TIMEOUT_SECONDS = 15.0


class Callers:
    """Callers of whom each waits for its answer, pauses, and calls again; errors are not repeated.

    Half of the calls are of the task that the adapters have learnt, the other half are the teacher's;
    of each half, one of two is streamed.

    Args:
        gateways: each caller keeps to one of them.
        known: the call that the adapters have learnt.
        answers: what they have learnt to say, to the adapter's name.
        pause_seconds: between two calls of one caller.
    """

    def __init__(
        self,
        gateways: Sequence[Program],
        known: Mapping[str, Any],
        answers: Mapping[str, str],
        *,
        callers: int = 4,
        pause_seconds: float = 0.08,
    ) -> None:
        self._gateways = gateways
        self._known = known
        self._answers = answers
        self._count = callers
        self._pause_seconds = pause_seconds
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.attempts: list[Attempt] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._call_on(self._gateways[number % len(self._gateways)]))
            for number in range(self._count)
        ]

    async def stop(self) -> None:
        """Wait for the calls under way. Raises what a caller raised by mistake."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _call_on(self, gateway: Program) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while not self._stop.is_set():
                number = next(self._numbers)
                self.attempts.append(await self._call(http, gateway, number))
                await asyncio.sleep(self._pause_seconds)

    async def _call(self, http: aiohttp.ClientSession, gateway: Program, number: int) -> Attempt:
        streamed = number % 2 == 0
        body = dict(self._known) if number % 4 < 2 else other_call(number)
        seen = {"gateway": gateway.name, "streamed": streamed, "started": time.monotonic()}
        headers: Mapping[str, str] = {}
        said: str | None = None
        try:
            async with http.post(
                f"{gateway.url}/v1/chat/completions",
                json={**body, "stream": streamed},
                headers={"x-session-id": f"session-{number}"},
            ) as response:
                headers = response.headers
                raw = await response.read()
                outcome = "answered" if response.status == 200 else f"HTTP {response.status}"
                if response.status == 200:
                    said = streamed_text(raw) if streamed else whole_text(raw)
                    outcome = "answered" if said is not None else "error in the stream"
        except aiohttp.ClientConnectorError:
            outcome = "no connection"
        except TimeoutError:
            outcome = "timeout"
        except (aiohttp.ClientError, OSError):
            outcome = "broken off"
        return Attempt(
            **seen,  # type: ignore[arg-type]
            ended=time.monotonic(),
            outcome=outcome,
            call_id=headers.get(CALL_HEADER, ""),
            answered_by=headers.get(ANSWERED_HEADER, ""),
            said_by=self._who(said, body) if said is not None else "",
        )

    def _who(self, said: str, body: Mapping[str, Any]) -> str:
        # A streamed answer's words come with a space after each.
        said = said.strip()
        if said == f"teacher: {body['messages'][-1]['content']}":
            return TEACHER
        return self._answers.get(said, "")


def other_call(number: int) -> dict[str, Any]:
    """A call of no task, with a text of its own."""
    words = " ".join("abcdefghij"[int(digit)] * 3 for digit in str(number))
    return {
        "model": "big",
        "messages": [
            {"role": "system", "content": "You are a clerk who repeats what was said."},
            {"role": "user", "content": f"repeat {words}"},
        ],
    }


def whole_text(raw: bytes) -> str | None:
    """The answer's text; None when it is no whole answer."""
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None


def streamed_text(raw: bytes) -> str | None:
    """The answer's text from its events; None unless it ended as it should, without an error."""
    text, done = "", False
    for line in raw.decode(errors="replace").splitlines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            done = True
            continue
        try:
            event = json.loads(line.removeprefix("data: "))
        except ValueError:
            return None
        if "error" in event:
            return None
        for choice in event.get("choices") or []:
            text += (choice.get("delta") or {}).get("content") or ""
    return text if done else None
