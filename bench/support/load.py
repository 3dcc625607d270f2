"""A load generator that costs little beside what it measures: HTTP/1.1 on bare sockets.

Closed loop: so many callers, each of whom waits for its answer. Open loop: calls go out at given
times whatever the answers do, so a target that stalls is not spared the calls of its stall.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

MAX_CONNECTIONS = 512
CALL_SECONDS = 60.0
CALL_MARK = b"@@call@@"
SESSION_MARK = b"@@sess@@"
_LETTERS = bytes.maketrans(b"0123456789", b"bdfgkmprtv")


@dataclass
class Tally:
    """Of calls that ended: seconds to the first byte of the answer's body, and to its last byte."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    refused: int = 0
    """Answers that were not 200, connections that broke, and calls that found too many waiting."""
    wall_seconds: float = 0.0


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one call under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[bool] | None = None
        self._head = b""
        self._left: int | None = None
        self._tail = b""
        self._ok = False
        self._in_body = False
        self.first_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> asyncio.Future[bool]:
        """True for a whole answer with status 200."""
        assert self._transport is not None and self._done is None
        self._head, self._left, self._tail, self._in_body = b"", None, b"", False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            self._ok = head[9:12] == b"200"
            at = head.find(b"content-length:")
            if at >= 0:
                self._left = int(head[at + 15 :].partition(b"\r\n")[0])
            self._in_body = True
            self.first_at = 0.0
        if data and not self.first_at:
            self.first_at = time.perf_counter()
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(self._ok)
        else:
            self._tail = (self._tail + data)[-5:]
            if self._tail.endswith(b"0\r\n\r\n"):
                self._finish(self._ok)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(False)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, ok: bool) -> None:
        done, self._done = self._done, None
        if done is not None and not done.done():
            done.set_result(ok)


class Client:
    """Connections to one target. For one event loop.

    Args:
        requests: whole HTTP requests, sent in turn. ``CALL_MARK`` in them becomes other eight letters
            with every call and ``SESSION_MARK`` with every third, so that no call comes twice.
    """

    def __init__(self, host: str, port: int, requests: Sequence[bytes]) -> None:
        self._address = host, port
        self._requests = requests
        self._next = 0
        self._idle: list[Connection] = []
        self._all: list[Connection] = []

    async def closed_loop(self, callers: int, seconds: float) -> Tally:
        tally = Tally()
        began = time.perf_counter()
        ends = began + seconds

        async def caller() -> None:
            while time.perf_counter() < ends:
                await self._call(tally)

        await asyncio.gather(*(caller() for _ in range(callers)))
        tally.wall_seconds = time.perf_counter() - began
        return tally

    async def open_loop(self, per_second: float, seconds: float, seed: int = 1) -> Tally:
        """Calls at random moments (a Poisson process), as of many callers who know nothing of each
        other."""
        tally = Tally()
        draw = random.Random(seed)
        began = time.perf_counter()
        due = began + draw.expovariate(per_second)
        calls: set[asyncio.Task[None]] = set()
        while due < began + seconds:
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._call(tally))
            calls.add(task)
            task.add_done_callback(calls.discard)
            due += draw.expovariate(per_second)
        if calls:
            await asyncio.wait(calls, timeout=CALL_SECONDS)
        tally.wall_seconds = time.perf_counter() - began
        return tally

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    async def _call(self, tally: Tally) -> None:
        connection = await self._take()
        if connection is None:
            tally.refused += 1
            return
        number = self._next
        self._next += 1
        request = (
            self._requests[number % len(self._requests)]
            .replace(CALL_MARK, letters(number))
            .replace(SESSION_MARK, letters(number // 3))
        )
        sent = time.perf_counter()
        try:
            ok = await asyncio.wait_for(connection.send(request), CALL_SECONDS)
        except TimeoutError:
            connection.close()
            ok = False
        ended = time.perf_counter()
        if ok:
            tally.first.append(connection.first_at - sent)
            tally.whole.append(ended - sent)
        else:
            tally.refused += 1
        if connection.open:
            self._idle.append(connection)

    async def _take(self) -> Connection | None:
        """An idle connection, or a new one; None when the target keeps too many calls waiting."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        self._all = [one for one in self._all if one.open]
        if len(self._all) >= MAX_CONNECTIONS:
            return None
        host, port = self._address
        _, made = await asyncio.get_running_loop().create_connection(Connection, host, port)
        self._all.append(made)
        return made


def letters(number: int) -> bytes:
    """Eight letters that stand for a number: digits would look like a phone number's."""
    return (b"%08d" % (number % 10**8)).translate(_LETTERS)


def http_request(path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
