"""The way of a record into the spool: anonymized first, in bounded memory, before the answer ends.

A small record is made and appended at once, in the event loop: that takes less time than handing it
to a thread. A large one, and any that comes behind one that waits, goes through one thread, in order.
While the disk takes nothing, records wait in memory and are tried again; how long their answers wait
for them, and whether they are given at all, is ``gateway.unlogged``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from infra.anonymize.policy import RecordDropped
from infra.calls.codec import StoredLine
from serving.gateway.metrics import Metrics
from serving.gateway.problems import log_unavailable
from serving.gateway.spool import Spool, SpoolError

logger = logging.getLogger(__name__)

INLINE_BYTES = 16 << 10
"""Up to this size a call is anonymized in the event loop: a thread would cost more than it frees."""
RECORD_BYTES = 4096
"""What a record holds beside the texts of request and answer, roughly."""
MAX_BACKLOG_BYTES = 128 << 20
MAX_BACKLOG_RECORDS = 10_000
ROOM_SECONDS = 10.0
RETRY_SECONDS = 0.25
CLOSE_SECONDS = 20.0
COMPLAIN_SECONDS = 30.0

Make = Callable[[], StoredLine]


class Recorder:
    """For one event loop.

    Args:
        poke: called after each append.
        fsync_seconds: how often what was appended is pushed to the disk itself.
        unlogged: what becomes of an answer whose record is not in the spool in time.
        log_wait_seconds: that time.
    """

    def __init__(
        self,
        spool: Spool,
        metrics: Metrics,
        poke: Callable[[], None],
        *,
        fsync_seconds: float = 0.2,
        unlogged: Literal["hold", "refuse"] = "hold",
        log_wait_seconds: float = 1.0,
    ) -> None:
        self._spool = spool
        self._metrics = metrics
        self._poke = poke
        self._unlogged = unlogged
        self._log_wait_seconds = log_wait_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._bytes = 0
        self._records = 0
        self._freed = asyncio.Event()
        self._closing = threading.Event()
        self._close_at = float("inf")
        self._complained = -COMPLAIN_SECONDS
        self._fsync_seconds = fsync_seconds
        self._appended_since_sync = False
        self._loop = asyncio.get_running_loop()
        self._sync_handle: asyncio.TimerHandle | None = None

    @property
    def backlog(self) -> int:
        """Records that wait in memory."""
        return self._records

    async def room(self) -> None:
        """Wait until the backlog is within its bounds; raises GatewayError 503 when it stays full."""
        if not self._full():
            return
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                while self._full():
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise log_unavailable() from None

    def put(
        self, make: Make, size_bytes: int, *, provisional: bool = False, inline: bool = True
    ) -> asyncio.Future[bool]:
        """Anonymize and append, in order.

        Args:
            make: gives the anonymized record; may run in the recorder's thread.
            size_bytes: what the waiting record roughly holds in memory.
            inline: whether ``make`` can be called here: it is short and waits for nobody.

        The future is True once a crash of this process cannot lose the record, False when it can never
        be written.
        """
        if inline and self._records == 0 and size_bytes <= INLINE_BYTES + RECORD_BYTES:
            done = self._try(make, provisional)
            if done is not None:
                future: asyncio.Future[bool] = self._loop.create_future()
                future.set_result(done)
                return future
        self._bytes += size_bytes
        self._records += 1
        future = self._loop.run_in_executor(self._pool, self._insist, make, provisional)

        def done_with(_: object) -> None:
            self._bytes -= size_bytes
            self._records -= 1
            self._freed.set()

        future.add_done_callback(done_with)
        return future

    async def settled(self, future: asyncio.Future[bool]) -> None:
        """Wait for the record, in bounded time; then the policy decides.

        Raises GatewayError 503 where it is ``refuse``.
        """
        if future.done():
            return
        await asyncio.wait({future}, timeout=self._log_wait_seconds)
        if future.done():
            return
        if self._unlogged == "refuse":
            raise log_unavailable()
        self._metrics.ahead.inc()

    def close(self) -> None:
        """Write out the backlog, as far as the disk takes it in time. Not from the event loop."""
        self._close_at = time.monotonic() + CLOSE_SECONDS
        self._closing.set()
        self._pool.shutdown(wait=True)

    def _full(self) -> bool:
        return self._bytes > MAX_BACKLOG_BYTES or self._records > MAX_BACKLOG_RECORDS

    def _insist(self, make: Make, provisional: bool) -> bool:
        """In the thread: until the disk takes it, or the gateway ends."""
        while True:
            done = self._try(make, provisional)
            if done is not None:
                return done
            if time.monotonic() >= self._close_at:
                self._metrics.lost.labels("spool").inc()
                return False
            if self._closing.is_set():
                time.sleep(RETRY_SECONDS)
            else:
                self._closing.wait(RETRY_SECONDS)

    def _try(self, make: Make, provisional: bool) -> bool | None:
        """True: appended; False: it never will be; None: not now."""
        try:
            record = make()
        except RecordDropped as dropped:
            # Asked for by the settings: counted, and nobody need wait or try again.
            self._metrics.left_out.labels(",".join(dropped.kinds)).inc()
            return True
        except Exception as error:  # noqa: BLE001 - a record that cannot be anonymized is never written
            self._metrics.lost.labels("anonymizer").inc()
            self._complain(f"a record could not be made: {type(error).__name__}")
            return False
        try:
            self._spool.append(record, provisional=provisional)
        except SpoolError as error:
            self._metrics.refused.inc()
            self._complain(str(error))
            return None
        if not provisional:
            self._metrics.appended.inc()
        self._poke()
        if not self._appended_since_sync:
            self._appended_since_sync = True
            self._loop.call_soon_threadsafe(self._sync_later)
        return True

    def _sync_later(self) -> None:
        if not self._closing.is_set():
            self._sync_handle = self._loop.call_later(self._fsync_seconds, self._sync_soon)

    def _sync_soon(self) -> None:
        if not self._closing.is_set():
            self._loop.run_in_executor(None, self._sync)

    def _sync(self) -> None:
        self._appended_since_sync = False
        try:
            self._spool.sync()
        except OSError as error:
            self._complain(f"the disk does not take the log: {error.strerror}")

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            logger.error("calls are answered but NOT logged: %s", text)
