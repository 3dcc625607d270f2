"""The request path: task, arm, answerer, escalation, log. No HTTP server in here, and no disk."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.anonymize.anonymizer import Anonymizer, Scope
from infra.calls.record import CallRecord, Checks, OtherAnswer, utc_now
from infra.settings.model import Settings
from serving.gateway.arms import TEACHER, Assignment, assign
from serving.gateway.background import Background
from serving.gateway.call import Call, checked, unseen
from serving.gateway.cascade import NOT_THE_ADAPTERS, Small, beyond_small_model
from serving.gateway.guard import KillSwitch, tended
from serving.gateway.holdings import Holdings
from serving.gateway.metrics import Metrics
from serving.gateway.problems import GatewayError
from serving.gateway.recorder import Recorder
from serving.gateway.routes import Snapshot, TaskRoute
from serving.gateway.routing import MODEL_PREFIX, Routed, Router
from serving.gateway.scopes import Scopes
from serving.gateway.small_calls import SmallCalls
from serving.gateway.streaming import completion
from serving.gateway.upstream import Teacher

logger = logging.getLogger(__name__)

OUR_MODEL = "nightschool"
"""The model name of a caller who wants whatever Night School thinks best."""


class Answering:
    """Decides and carries out who answers a call. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        snapshot: Callable[[], Snapshot],
        anonymizer: Anonymizer,
        teacher: Teacher,
        small: SmallCalls,
        holdings: Holdings,
        kills: KillSwitch,
        recorder: Recorder,
        audits: Background,
        shadows: Background,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.teacher = teacher
        self.scopes: Scopes[Scope] = Scopes(anonymizer.scope)
        self._snapshot = snapshot
        self._small = small
        self._holdings = holdings
        self._kills = kills
        self._recorder = recorder
        self._audits = audits
        self._shadows = shadows
        self._metrics = metrics
        self._router = Router(Snapshot())
        self._routed_from: Snapshot | None = None
        self._redactor = ThreadPoolExecutor(2, thread_name_prefix="redactor")

    def close(self) -> None:
        self._redactor.shutdown(wait=False, cancel_futures=True)

    def router(self) -> Router:
        """The router over the present snapshot."""
        snapshot = self._snapshot()
        if self._routed_from is None or self._routed_from.tasks is not snapshot.tasks:
            self._router = Router(snapshot)
            self._routed_from = snapshot
        return self._router

    async def try_small_model(self, call: Call) -> dict[str, Any] | None:
        """The response when the small model may and can answer; else None and the call knows why.

        Sets the call's task, assignment, and escalation.
        """
        look = not self._small.too_long(call.chat.size_bytes)
        call.routed = self.router().route(call.chat.body, call.chat.tag, call.tenant, look=look)
        call.assignment = await self._assign(call)
        call.escalation = call.assignment.escalation
        adapter = call.assignment.answerer
        if adapter is None or (call.escalation and call.escalation != "kill_switch"):
            return None
        small = await self._small.ask(adapter, await self._redacted(call))
        call.small = small
        if small.accepted and small.message is not None:
            message = self._scope(call).restore(small.message)
            checks = checked(message, call.chat.body)
            if not checks.passed:
                # Fits the schema with a placeholder in it, and not with the value.
                small = call.small = dataclasses.replace(
                    small,
                    accepted=False,
                    checks=checks,
                    escalation=f"checks:{checks.reason}"[:120],
                )
            else:
                self._guard(call.routed, small)
                return completion(
                    call.id,
                    adapter.name,
                    message,
                    prompt_tokens=small.usage.prompt_tokens,
                    completion_tokens=small.usage.completion_tokens,
                )
        self._guard(call.routed, small)
        call.escalation = call.escalation or small.escalation
        return None

    def teacher_body(self, call: Call, *, whole: bool = False) -> dict[str, Any]:
        """The request for the teacher; ``whole``: not streamed, for an audit."""
        model = call.chat.model
        ours = (
            not model
            or model == OUR_MODEL
            or model.startswith(MODEL_PREFIX)
            or self.router().named(model) is not None
            or model in self._snapshot().adapters()
        )
        body = call.chat.forwarded(self.settings.teacher.model if ours else None)
        if whole:
            body = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
        return body

    def finish(self, call: Call, headers: Mapping[str, str]) -> None:
        """The caller has its answer: count it, log it, and gather second opinions.

        Args:
            headers: for the teacher, should it be asked once more.
        """
        self._metrics.answered(
            call.task_id or "", call.answerer, call.escalation, call.latency_seconds
        )
        work = self._second_opinions(call)
        if not work:
            self._log(call)
            return

        async def gather() -> None:
            found = await asyncio.gather(
                *(self._opinion(call, purpose, headers) for purpose in work)
            )
            call.others = [other for other in found if other is not None]
            self._log(call)

        # Safe at once, and once more when it is complete.
        self._log(call, provisional=True)
        # Shadows wait for the engine, audits for the teacher: in a queue of their own, the audits
        # that a canary's verdict needs do not wait behind shadows that it can do without.
        if "shadow" in work:
            if self._shadows.offer(gather):
                return
            work.remove("shadow")
            self._metrics.dropped.labels("shadow").inc()
        if work and self._audits.offer(gather):
            return
        for purpose in work:
            self._metrics.dropped.labels(purpose).inc()
        self._log(call)

    async def _assign(self, call: Call) -> Assignment:
        routed = call.routed
        if routed is None or not routed.task.adapters():
            return TEACHER
        body = call.chat.body
        task = routed.task
        if beyond_small_model(body) or self._small.too_long(call.chat.size_bytes):
            return TEACHER
        if not routed.fit():
            return TEACHER
        if self.settings.anonymizer.policy == "drop" and await self._redacted(call) != body:
            return TEACHER  # what was dropped cannot be put back into an answer
        return assign(
            task,
            call.chat.session,
            ready=self._holdings.ready,
            killed=self._kills.killed(task.rollout_id),
            tended=tended(task, utc_now(), self.settings.gateway.dead_man_seconds),
        )

    def _guard(self, routed: Routed | None, small: Small) -> None:
        """Tell the kill switch what the candidate did."""
        if routed is None:
            return
        task = routed.task
        if task.candidate is None or task.candidate.name != small.adapter:
            return
        kill = self._kills.report(
            task,
            small.hard_failure,
            passed=small.message is not None and small.checks.passed,
            reason=small.escalation or "accepted",
        )
        if kill is not None:
            self._metrics.kills.labels(task.id).inc()

    def _second_opinions(self, call: Call) -> list[str]:
        if call.message is None or call.routed is None:
            return []
        wanted = []
        if call.assignment.shadow is not None:
            wanted.append("shadow")
        if call.by_small_model and sampled(call.id, self._audit_rate(call.routed.task)):
            wanted.append("audit")
        return wanted

    def _audit_rate(self, task: TaskRoute) -> float:
        if task.stage != "none" and task.audit_rate is not None:
            return task.audit_rate
        return self.settings.gateway.audit_rate

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
        small = await self._small.ask(candidate, await self._redacted(call))
        if small.escalation in NOT_THE_ADAPTERS:
            self._metrics.dropped.labels("shadow").inc()
            return None
        self._guard(call.routed, small)
        return unseen(small, self.settings.engine.base_model, "shadow")

    async def _audit(self, call: Call, headers: Mapping[str, str]) -> OtherAnswer:
        started = time.perf_counter()
        model, message, error = self.settings.teacher.model, None, None
        try:
            reply = await self.teacher.ask(self.teacher_body(call, whole=True), headers)
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

    def _log(self, call: Call, *, provisional: bool = False) -> None:
        frozen = dataclasses.replace(call)
        scope = self._scope(call)
        teacher, small = self.settings.teacher.model, self.settings.engine.base_model

        def make() -> CallRecord:
            return scope.record(frozen.record(teacher, small))

        held = call.chat.size_bytes + call.answer_bytes + 4096
        self._recorder.put(make, held, provisional=provisional)

    async def _redacted(self, call: Call) -> dict[str, Any]:
        """The request as the small model sees it. In a thread: a scope may be busy with a long text."""
        if call.redacted is None:
            loop = asyncio.get_running_loop()
            call.redacted = await loop.run_in_executor(
                self._redactor, self._scope(call).request, call.chat.logged()
            )
        return call.redacted

    def _scope(self, call: Call) -> Scope:
        return self.scopes.of(call.tenant, call.chat.session)


def sampled(call_id: str, rate: float) -> bool:
    """Whether this call is audited: by its id alone, so that the choice can be replayed."""
    digest = hashlib.blake2b(b"audit:" + call_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < rate * 2.0**64


def error_code(body: Mapping[str, Any] | None) -> str:
    """The code or type of an OpenAI error body, for the log; never its message."""
    error = (body or {}).get("error")
    if isinstance(error, dict):
        for name in ("code", "type"):
            if isinstance(error.get(name), str) and len(json.dumps(error[name])) < 80:
                return str(error[name])
    return "upstream_error"
