"""The one thread that runs the model, and the bounded queue in front of it.

Callers come from an event loop that must stay responsive, so nothing here blocks them: a request
is queued or refused at once, and its tokens are reported through a callback.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from serving.engines.embedded.decoding import Row, RunningBatch

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many requests wait as may."""


class BatcherClosed(Exception):
    """The engine is shutting down, or its thread has died."""


class GenerationFailed(Exception):
    """The model could not answer this request."""


@dataclass
class Job:
    """One request on its way through the batcher.

    ``report(tokens, done, error)`` is called in the model's thread: with ``every_token`` after each
    token but the last, and always once at the end, after which the row is out of the batch. It must
    return at once.
    """

    row: Row
    report: Callable[[int, bool, Exception | None], None]
    every_token: bool = False
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Step:
    """What one pass of the model did, for the metrics."""

    kind: str
    """``prefill`` or ``decode``."""
    rows: int
    tokens: int
    seconds: float


def choose(lengths: Sequence[int], free: int, budget: int) -> list[int]:
    """Which waiting prompts to prefill together: positions in ``lengths``, oldest first.

    The oldest always goes, so none starves; then those nearest to its length, because every row
    is padded to the longest. Padded tokens stay within ``budget`` (the oldest is exempt).
    """
    if not lengths or free < 1:
        return []
    chosen, longest = [0], lengths[0]
    nearest = sorted(range(1, len(lengths)), key=lambda i: (abs(lengths[i] - lengths[0]), i))
    for number in nearest:
        if len(chosen) >= free:
            break
        width = max(longest, lengths[number])
        if width * (len(chosen) + 1) <= budget:
            chosen.append(number)
            longest = width
    return sorted(chosen)


class Batcher:
    """Owns the running batch and its thread.

    Args:
        batch: the rows being decoded.
        batch_size: rows at most.
        max_waiting: requests that may wait; one more raises QueueFull.
        window_seconds: how long an idle engine waits for company before it starts.
        prefill_tokens: padded prompt tokens in one prefill, which running rows must wait for.
        observe: called after each pass of the model.
        threads: torch threads.
    """

    def __init__(
        self,
        batch: RunningBatch,
        *,
        batch_size: int,
        max_waiting: int,
        window_seconds: float,
        prefill_tokens: int = 4096,
        threads: int = 1,
        observe: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self._batch = batch
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._window_seconds = window_seconds
        self._prefill_tokens = prefill_tokens
        self._threads = threads
        self._observe = observe
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._jobs: dict[int, Job] = {}
        """Jobs of the running rows, by id of the row."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_seconds: float = 30) -> None:
        """Stop after the current pass; whatever waits or runs is told BatcherClosed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_seconds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._batch.rows)

    def submit(self, job: Job) -> None:
        """Queue a request. Raises QueueFull or BatcherClosed, at once."""
        with self._wake:
            if not self.alive:
                raise BatcherClosed("the engine is shutting down")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull(f"{self._max_waiting} requests already wait")
            self._waiting.append(job)
            self._wake.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function in the model's thread, between two passes."""
        future: Future[Any] = Future()
        with self._wake:
            if not self.alive:
                raise BatcherClosed("the engine is shutting down")
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def _run(self) -> None:
        import torch

        # OpenMP keeps the number of threads for each thread that calls it.
        torch.set_num_threads(self._threads)
        try:
            while self._await_work():
                self._run_calls()
                try:
                    self._pass()
                except Exception as error:
                    log.exception("a pass of the model failed")
                    self._fail(GenerationFailed(f"the model failed: {type(error).__name__}"))
        finally:
            with self._wake:
                self._closing = True
            self._fail(BatcherClosed("the engine is shutting down"), also_waiting=True)

    def _await_work(self) -> bool:
        """Wait until there is something to do. False when the batcher closes."""
        with self._wake:
            while not (self._closing or self._waiting or self._calls or self._batch.rows):
                self._wake.wait()
            while not (self._closing or self._calls or self._batch.rows):
                left = self._waiting[0].submitted + self._window_seconds - time.monotonic()
                if left <= 0 or len(self._waiting) >= self._batch_size:
                    break
                self._wake.wait(left)
            return not self._closing

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)

    def _pass(self) -> None:
        gone = [row for row in self._batch.rows if self._jobs[id(row)].cancelled]
        if gone:
            self._batch.cancel(gone)
            self._finish(gone)
        admitted = self._take()
        if admitted:
            rows = [job.row for job in admitted]
            self._jobs.update((id(job.row), job) for job in admitted)
            started = time.perf_counter()
            done = self._batch.admit(rows)
            tokens = sum(len(row.prompt) for row in rows)
            self._observe(Step("prefill", len(rows), tokens, time.perf_counter() - started))
        elif self._batch.rows:
            rows = list(self._batch.rows)
            started = time.perf_counter()
            done = self._batch.step()
            self._observe(Step("decode", len(rows), len(rows), time.perf_counter() - started))
        else:
            return
        self._finish(done)
        for row in rows:
            job = self._jobs.get(id(row))
            if job is not None and job.every_token:
                job.report(len(row.tokens), False, None)

    def _take(self) -> list[Job]:
        with self._wake:
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
                job.report(0, True, None)
            waiting = list(self._waiting)
            free = self._batch_size - len(self._batch.rows)
            numbers = choose([len(job.row.prompt) for job in waiting], free, self._prefill_tokens)
            taken = [waiting[number] for number in numbers]
            for job in taken:
                self._waiting.remove(job)
            return taken

    def _finish(self, rows: Sequence[Row]) -> None:
        for row in rows:
            job = self._jobs.pop(id(row))
            error = GenerationFailed(row.error) if row.error else None
            job.report(len(row.tokens), True, error)

    def _fail(self, error: Exception, *, also_waiting: bool = False) -> None:
        self._batch.reset()
        jobs = list(self._jobs.values())
        self._jobs.clear()
        if also_waiting:
            with self._wake:
                jobs += self._waiting
                self._waiting.clear()
                calls = list(self._calls)
                self._calls.clear()
            for _, future in calls:
                future.set_exception(error)
        for job in jobs:
            job.report(len(job.row.tokens), True, error)
