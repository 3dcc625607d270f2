"""One engine of a fleet: what it holds, whether it can be relied on, and the calls it has under way."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.breaker import CircuitBreaker
from serving.engines.client import EngineClient
from serving.engines.protocol import (
    EngineError,
    EngineOverloaded,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
)

FAILURES = 5
OPEN_SECONDS = 2.0


class Replica:
    """For one event loop: there is no lock."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine
        self.holds: frozenset[str] = frozenset()
        """Adapters that may get traffic here: loaded and probed."""
        self.listed: frozenset[str] | None = None
        """Adapters that it said it has, when it was last asked; None: it could not be asked."""
        self.sure = True
        """False once a connection broke: it may have restarted empty. Others are asked first."""
        self.breaker = CircuitBreaker(FAILURES, OPEN_SECONDS)
        self._under_way: Counter[str | None] = Counter()
        self._calls = 0

    @property
    def calls(self) -> int:
        """Calls of ours that it has under way."""
        return self._calls

    def under_way(self, model: str | None) -> int:
        return self._under_way[model]

    @contextmanager
    def call(self, model: str | None) -> Iterator[None]:
        """Count a call while it is under way."""
        self._under_way[model] += 1
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._under_way[model] -= 1
            if not self._under_way[model]:
                del self._under_way[model]

    def rank(self, model: str | None) -> tuple[bool, int, int]:
        """The least is asked first: a sure one, with the fewest calls, else always the same one for
        a model, whose prefix cache knows the task's prompt (rendezvous hashing)."""
        return (not self.sure, self._calls, zlib.crc32(f"{self.engine.url}\0{model}".encode()))

    def heard(self, names: frozenset[str]) -> None:
        """It listed its adapters: what is not among them is not there any more."""
        self.listed = names
        self.holds &= names
        self.sure = True

    def failed(self, model: str | None, error: EngineError) -> None:
        """Draw the conclusions from a call that failed here."""
        if isinstance(error, EngineUnavailable):
            self.breaker.failed()
            if error.status is None and not isinstance(error, EngineTimeout):
                self.sure = False
            return
        # It answered, be it with a refusal.
        self.breaker.succeeded()
        if unknown(model, error) and model is not None:
            self.holds -= {model}
            self.sure = False


def unknown(model: str | None, error: EngineError) -> bool:
    """Whether an engine says that it does not have the adapter."""
    return model is not None and isinstance(error, EngineRefused) and error.status == 404


def worth_another(model: str | None, error: EngineError) -> bool:
    """Whether another replica may answer what this one did not. After a timeout no time is left."""
    if isinstance(error, EngineTimeout):
        return False
    return isinstance(error, (EngineUnavailable, EngineOverloaded)) or unknown(model, error)
