"""The way of a record into the spool: anonymized first, in one thread, in bounded memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from infra.calls.record import LogRecord
from serving.gateway.metrics import Metrics
from serving.gateway.spool import Spool, SpoolError

logger = logging.getLogger(__name__)

MAX_BACKLOG_BYTES = 128 << 20
MAX_BACKLOG_RECORDS = 10_000
COMPLAIN_SECONDS = 30.0


class Recorder:
    """For one event loop. ``put`` returns at once; ``room`` is where a caller waits when the disk
    cannot keep up: memory stays bounded and no record is dropped."""

    def __init__(self, spool: Spool, metrics: Metrics, poke: Callable[[], None]) -> None:
        self._spool = spool
        self._metrics = metrics
        self._poke = poke
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._bytes = 0
        self._records = 0
        self._freed = asyncio.Event()
        self._complained = -COMPLAIN_SECONDS

    @property
    def backlog(self) -> int:
        return self._records

    async def room(self) -> None:
        """Wait until the backlog is within its bounds."""
        while self._bytes > MAX_BACKLOG_BYTES or self._records > MAX_BACKLOG_RECORDS:
            self._freed.clear()
            await self._freed.wait()

    def put(
        self, make: Callable[[], LogRecord], size_bytes: int, *, provisional: bool = False
    ) -> asyncio.Future[bool]:
        """Anonymize and append, in order.

        Args:
            make: gives the anonymized record; runs in the recorder's thread.
            size_bytes: what the waiting record roughly holds in memory.

        The future is True once the record is acknowledged; nobody needs to wait for it.
        """
        loop = asyncio.get_running_loop()
        self._bytes += size_bytes
        self._records += 1
        future = loop.run_in_executor(self._pool, self._append, make, provisional)

        def done(_: object) -> None:
            self._bytes -= size_bytes
            self._records -= 1
            self._freed.set()

        future.add_done_callback(done)
        return future

    def close(self) -> None:
        """Write out the backlog."""
        self._pool.shutdown(wait=True)

    def _append(self, make: Callable[[], LogRecord], provisional: bool) -> bool:
        try:
            record = make()
        except Exception as error:  # noqa: BLE001 - a record that cannot be anonymized is never written
            self._lost("anonymizer", f"a record could not be made: {type(error).__name__}")
            return False
        try:
            self._spool.append(record, provisional=provisional)
        except SpoolError as error:
            self._lost("spool", str(error))
            return False
        except Exception as error:  # noqa: BLE001 - the thread must live on
            self._lost("encoding", f"a record could not be written: {type(error).__name__}")
            return False
        if not provisional:
            self._metrics.appended.inc()
        self._poke()
        return True

    def _lost(self, reason: str, text: str) -> None:
        self._metrics.lost.labels(reason).inc()
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            logger.error("calls are answered but NOT logged: %s", text)
