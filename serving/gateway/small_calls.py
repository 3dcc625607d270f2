"""Asks the small model within the gateway's limits: queue, time, circuit; never raises."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from infra.anonymize.restoring import placeholders
from infra.calls.record import Checks
from infra.settings.model import Settings
from serving.breaker import CircuitBreaker
from serving.engines.protocol import EngineError, EngineRefused, EngineUnavailable
from serving.gateway.cascade import (
    ABSENT,
    GONE,
    Small,
    failed,
    judged,
    refused_as_unsafe,
)
from serving.gateway.early import TextTurnedBad
from serving.gateway.holdings import Holdings
from serving.gateway.problems import CallerGone
from serving.gateway.routes import AdapterRoute
from serving.gateway.unsafe import UnsafeOutput
from serving.small_model import Growing, SmallModel, answer_limit

logger = logging.getLogger(__name__)


class SmallCalls:
    """The small model as the request path sees it. For one event loop."""

    def __init__(self, model: SmallModel, holdings: Holdings, settings: Settings) -> None:
        self._model = model
        self._holdings = holdings
        self._most = settings.gateway.small_model_queue
        self._timeout_seconds = settings.gateway.small_model_timeout_seconds
        self._answer_tokens = settings.engine.max_answer_tokens
        # A token has at least one character, so a prompt this long cannot fit.
        self._most_characters = settings.engine.max_prompt_tokens * 64
        self._under_way = 0
        self._unsafe = UnsafeOutput(settings.gateway.deny_patterns)
        self.breaker = CircuitBreaker(failures=5, open_seconds=2.0)

    @property
    def under_way(self) -> int:
        return self._under_way

    async def ask(
        self, adapter: AdapterRoute, request: Mapping[str, Any], growing: Growing | None = None
    ) -> Small:
        """The adapter's answer to an anonymized request, judged; or why there is none.

        Args:
            growing: hears a text while it is generated. Raises what that raises (TextTurnedBad, CallerGone).
        """
        started = time.perf_counter()
        if self._under_way >= self._most:
            return Small(adapter.name, escalation="overloaded")
        if not self.breaker.allow():
            return Small(adapter.name, escalation=ABSENT)
        self._under_way += 1
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._model.answer(
                    request,
                    adapter=adapter.name,
                    form=adapter.prompt_format,
                    threshold=adapter.threshold,
                    score=adapter.confidence,
                    max_tokens=self._answer_tokens,
                    timeout_seconds=self._timeout_seconds,
                    growing=growing,
                )
        except (TextTurnedBad, CallerGone):
            self.breaker.succeeded()  # it was generating, whoever no longer listens
            raise
        except (EngineError, TimeoutError) as error:
            self._note(error)
            return failed(adapter.name, error, time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - a request that cannot be rendered: the teacher's
            logger.warning("a request cannot be put to the small model: %s", type(error).__name__)
            self.breaker.succeeded()
            return Small(
                adapter.name,
                checks=Checks(parsed=False, reason="the request cannot be rendered"),
                escalation="checks:the request cannot be rendered",
            )
        finally:
            self._under_way -= 1
        self.breaker.succeeded()
        limited = answer_limit(request, self._answer_tokens) < self._answer_tokens
        small = judged(adapter.name, answer, placeholders(request), limited=limited)
        if small.message is None:
            return small
        found = self._unsafe.found(small.message, request)
        return small if found is None else refused_as_unsafe(small, found)

    def too_long(self, size_bytes: int) -> bool:
        """Whether a request of that many bytes is far beyond the small model's prompt."""
        return size_bytes > self._most_characters

    def _note(self, error: Exception) -> None:
        if isinstance(error, (EngineUnavailable, TimeoutError)):
            self.breaker.failed()
            return
        # It answered, be it with a refusal.
        self.breaker.succeeded()
        if isinstance(error, EngineRefused) and error.status == GONE:
            self._holdings.recheck()
