"""A circuit breaker: after enough failures in a row, stop asking for a while, then try one."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed until ``failures`` in a row; then open for ``open_seconds``; then one probe at a time.

    Only for calls on one event loop: there is no lock.
    """

    def __init__(
        self,
        failures: int = 5,
        open_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._failed = 0
        self._opened_at: float | None = None
        self._probing_since: float | None = None

    @property
    def open(self) -> bool:
        return self._opened_at is not None

    def allow(self) -> bool:
        """Whether to ask now. Half open: the first caller is the probe, the others are refused."""
        if self._opened_at is None:
            return True
        now = self._clock()
        if now - self._opened_at < self._open_seconds:
            return False
        # A probe that never reported (its caller went away) must not block the next for ever.
        if self._probing_since is not None and now - self._probing_since < self._open_seconds:
            return False
        self._probing_since = now
        return True

    def succeeded(self) -> None:
        self._failed = 0
        self._opened_at = None
        self._probing_since = None

    def failed(self) -> None:
        self._failed += 1
        self._probing_since = None
        if self._failed >= self._limit:
            self._opened_at = self._clock()
