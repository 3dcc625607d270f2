"""Play agents: sessions through the gateway with the official OpenAI client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import APIConnectionError, APIError, AsyncOpenAI, InternalServerError

from evaluators.scoring import score_answer
from flows.demo.traffic import TrafficCall, TrafficSession

CALL_SECONDS = 120.0
TEACHER = "teacher"


@dataclass
class Tally:
    """What the agents saw: counted at their side, by comparing with the recorded answer."""

    calls: int = 0
    failed: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)
    agreed: float = 0.0
    small: int = 0
    small_agreed: float = 0.0
    call_kinds: dict[str, str] = field(default_factory=dict)
    """Call id to the kind of traffic it was: the truth that task discovery is measured against."""

    def add(self, kind: str, call_id: str, answered_by: str, agreement: float) -> None:
        self.calls += 1
        self.by_kind[kind] += 1
        self.answered_by[answered_by] += 1
        self.call_kinds[call_id] = kind
        self.agreed += agreement
        if answered_by != TEACHER:
            self.small += 1
            self.small_agreed += agreement

    def merge(self, other: Tally) -> None:
        self.calls += other.calls
        self.failed += other.failed
        self.by_kind += other.by_kind
        self.answered_by += other.answered_by
        self.agreed += other.agreed
        self.small += other.small
        self.small_agreed += other.small_agreed
        self.call_kinds.update(other.call_kinds)

    @property
    def small_share(self) -> float:
        return self.small / self.calls if self.calls else 0.0

    @property
    def small_agreement(self) -> float | None:
        return self.small_agreed / self.small if self.small else None

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.calls if self.calls else None


async def play(
    gateways: Sequence[str],
    sessions: Iterable[TrafficSession],
    *,
    concurrency: int,
    on_call: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Play the sessions, ``concurrency`` agents at a time, each agent's calls in order.

    Args:
        gateways: their addresses ending in /v1. Calls go round them, and a call that fails at one
            is made at the next, as behind a load balancer.
        on_call: told the tally after every call.
    """
    tally = Tally()
    waiting = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(
        base_url=gateways[0], api_key="demo", timeout=CALL_SECONDS, max_retries=2
    ) as client:
        clients = [client.with_options(base_url=address) for address in gateways]

        async def agent(first: int, session: TrafficSession) -> None:
            async with waiting:
                for number, call in enumerate(session.calls):
                    start = (first + number) % len(clients)
                    turn = clients[start:] + clients[:start]
                    await _ask(turn, session, call, tally, stream=number % 4 == 3)
                    on_call(tally)

        await asyncio.gather(*(agent(*numbered) for numbered in enumerate(sessions)))
    return tally


async def _ask(
    clients: Sequence[AsyncOpenAI],
    session: TrafficSession,
    call: TrafficCall,
    tally: Tally,
    *,
    stream: bool,
) -> None:
    request: dict[str, Any] = {"model": "teacher", **call.request}
    headers = {"x-session-id": session.session_id}
    for client in clients:
        try:
            answer = await client.chat.completions.with_raw_response.create(
                **request, stream=stream, extra_headers=headers
            )
            parsed: Any = answer.parse()
            message = await _assembled(parsed) if stream else parsed.choices[0].message.model_dump()
            break
        except (APIConnectionError, InternalServerError, httpx.HTTPError):
            continue
        except APIError:
            tally.failed += 1
            return
    else:
        tally.failed += 1
        return
    agreement = score_answer(call.answer, message, request).correct
    answered_by = answer.headers.get("x-nightschool-answered-by", TEACHER)
    tally.add(call.kind, answer.headers.get("x-nightschool-call-id", ""), answered_by, agreement)


async def _assembled(stream: Any) -> dict[str, Any]:
    """The message that a stream's pieces make up."""
    content = ""
    calls: dict[int, dict[str, Any]] = {}
    async for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for piece in delta.tool_calls or []:
            call = calls.setdefault(
                piece.index,
                {"id": piece.id, "type": "function", "function": {"name": "", "arguments": ""}},
            )
            call["function"]["name"] += piece.function.name or ""
            call["function"]["arguments"] += piece.function.arguments or ""
    if calls:
        return {"role": "assistant", "content": None, "tool_calls": list(calls.values())}
    return {"role": "assistant", "content": content}
