"""Second opinions on calls already answered: the shadow of a candidate, the audit of a small model.

Nobody waits for them. Shadows wait for the engine and audits for the teacher: in a queue of their own,
the audits that a canary's verdict needs do not stand behind shadows that it can do without.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from infra.calls.record import Checks, OtherAnswer
from infra.settings.model import Settings
from serving.gateway.background import Background
from serving.gateway.call import Call, checked, unseen
from serving.gateway.cascade import NOT_THE_ADAPTERS, Small
from serving.gateway.metrics import Metrics
from serving.gateway.problems import GatewayError
from serving.gateway.routes import AdapterRoute, Snapshot, TaskRoute
from serving.gateway.upstream import Teacher

logger = logging.getLogger(__name__)

AskSmall = Callable[[AdapterRoute, Call], Awaitable[Small]]
Body = Callable[[Call], Mapping[str, Any]]


class SecondOpinions:
    """Asks for them, bounded in number. For one event loop.

    Args:
        ask_small: puts the call to an adapter, unseen.
        body: the call as the teacher gets it, not streamed.
        guard: hears what a shadow's candidate did (the kill switch).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        snapshot: Callable[[], Snapshot],
        teacher: Teacher,
        ask_small: AskSmall,
        body: Body,
        guard: Callable[[Call, Small], None],
        audits: Background,
        shadows: Background,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._teacher = teacher
        self._ask_small = ask_small
        self._body = body
        self._guard = guard
        self._audits = audits
        self._shadows = shadows
        self._metrics = metrics

    def wanted(self, call: Call) -> list[str]:
        """``shadow``, ``audit``, both or neither."""
        if call.routed is None or call.message is None:
            return []
        wanted = []
        if call.assignment.shadow is not None:
            wanted.append("shadow")
        if call.by_small_model and sampled(call.id, self._audit_rate(call.routed.task)):
            wanted.append("audit")
        return wanted

    def gather(
        self,
        call: Call,
        wanted: list[str],
        headers: Mapping[str, str],
        done: Callable[[], object],
    ) -> None:
        """Have them made, put them into the call, then ``done()``; at once where there is no room.

        Args:
            headers: for the teacher.
        """
        work = list(wanted)

        async def make() -> None:
            found = await asyncio.gather(*(self._opinion(call, item, headers) for item in work))
            call.others = [other for other in found if other is not None]
            done()

        if "shadow" in work:
            if self._shadows.offer(make):
                return
            work.remove("shadow")
            self._metrics.dropped.labels("shadow").inc()
        if work and self._audits.offer(make):
            return
        for purpose in work:
            self._metrics.dropped.labels(purpose).inc()
        done()

    def _audit_rate(self, task: TaskRoute) -> float:
        if task.stage != "none" and task.audit_rate is not None:
            return task.audit_rate
        return self._settings.gateway.audit_rate

    async def _opinion(
        self, call: Call, purpose: str, headers: Mapping[str, str]
    ) -> OtherAnswer | None:
        try:
            other = await (
                self._shadow(call) if purpose == "shadow" else self._audit(call, headers)
            )
        except Exception as error:  # noqa: BLE001 - the record is worth more than the opinion
            logger.warning("%s of a call failed: %s", purpose, type(error).__name__)
            other = None
        outcome = "left out" if other is None else "error" if other.error else "answered"
        self._metrics.background.labels(purpose, outcome).inc()
        return other

    async def _shadow(self, call: Call) -> OtherAnswer | None:
        candidate = call.assignment.shadow
        assert candidate is not None
        route = next((t for t in self._snapshot().tasks if t.id == call.task_id), None)
        if route is None or route.stage != "shadow" or route.candidate != candidate:
            # The rollout went on while this waited: its answer would be evidence of nothing.
            self._metrics.dropped.labels("shadow").inc()
            return None
        small = await self._ask_small(candidate, call)
        if small.escalation in NOT_THE_ADAPTERS:
            self._metrics.dropped.labels("shadow").inc()
            return None
        self._guard(call, small)
        return unseen(small, self._settings.engine.base_model, "shadow")

    async def _audit(self, call: Call, headers: Mapping[str, str]) -> OtherAnswer:
        started = time.perf_counter()
        model, message, error = self._settings.teacher.model, None, None
        try:
            reply = await self._teacher.ask(self._body(call), headers)
            body = reply.json() or {}
            choices = body.get("choices")
            if reply.status == 200 and isinstance(choices, list) and choices:
                message = choices[0].get("message")
                model = str(body.get("model") or model)
            else:
                error = f"HTTP {reply.status}"
        except GatewayError as problem:
            error = problem.code or "error"
        return OtherAnswer(
            model=model,
            purpose="audit",
            message=message,
            checks=checked(message, call.chat.body) if message else Checks(parsed=False),
            accepted=message is not None,
            latency_seconds=time.perf_counter() - started,
            error=error,
        )


def sampled(call_id: str, rate: float) -> bool:
    """Whether this call is audited: by its id alone, so that the choice can be replayed."""
    digest = hashlib.blake2b(b"audit:" + call_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < rate * 2.0**64
