"""Racing a slow small model against the teacher: the first good answer wins, the other is dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from serving.gateway.cascade import Small
from serving.gateway.problems import GatewayError
from serving.gateway.upstream import Reply

HEDGED = "hedged"
"""The escalation of a call whose small model was too slow."""


async def raced(
    small: Coroutine[Any, Any, Small],
    adapter: str,
    after_seconds: float,
    teacher: Callable[[], Awaitable[Reply]],
) -> tuple[Small, Reply | None]:
    """The small model's answer, and the teacher's where that one was asked and answered first.

    Args:
        small: asks the small model.
        after_seconds: how long it may take alone.
        teacher: asks the teacher for a whole answer.
    """
    first = asyncio.ensure_future(small)
    second: asyncio.Future[Reply] | None = None
    try:
        await asyncio.wait({first}, timeout=after_seconds)
        if first.done():
            return first.result(), None
        second = asyncio.ensure_future(teacher())
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        if first.done() and first.result().accepted:
            return first.result(), None
        with contextlib.suppress(GatewayError):
            reply = await second
            if reply.status == 200:
                late = Small(adapter, escalation=HEDGED)
                return (first.result() if first.done() else late), reply
        # The teacher has nothing either: the small model may still have.
        return await first, None
    finally:
        for task in (first, second):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
