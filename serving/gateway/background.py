"""Work that nobody waits for: shadow answers and audits, bounded in number and in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


class Background:
    """A bounded queue with a few workers, for one event loop."""

    def __init__(self, workers: int = 8, waiting: int = 256) -> None:
        self._queue: asyncio.Queue[Work] = asyncio.Queue(waiting)
        self._count = workers
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._loop()) for _ in range(self._count)]

    def offer(self, work: Work) -> bool:
        """Queue the work; False when the queue is full, and then it is not done."""
        try:
            self._queue.put_nowait(work)
        except asyncio.QueueFull:
            return False
        return True

    def depth(self) -> int:
        return self._queue.qsize()

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what is queued, within the time; the rest is left undone."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), timeout_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _loop(self) -> None:
        while True:
            work = await self._queue.get()
            try:
                await work()
            except Exception:
                logger.exception("work in the background failed")
            finally:
                self._queue.task_done()
