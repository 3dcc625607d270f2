"""The request path: task, arm, answerer, escalation, log. No HTTP server in here, and no disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.anonymize.anonymizer import Anonymizer, Redacted, Scope
from infra.anonymize.policy import RecordDropped
from infra.anonymize.restoring import placeholders
from infra.calls.codec import StoredLine, stored_fields
from infra.calls.record import utc_now
from infra.prompting.confidence import MEAN
from infra.settings.model import Settings
from serving.gateway.arms import TEACHER, Assignment, assign
from serving.gateway.background import Background
from serving.gateway.call import Call, checked
from serving.gateway.cascade import Small
from serving.gateway.early import EarlyText, TextTurnedBad, may_stream
from serving.gateway.guard import KillSwitch, tended
from serving.gateway.hedge import raced
from serving.gateway.holdings import Holdings
from serving.gateway.metrics import Metrics
from serving.gateway.opinions import SecondOpinions
from serving.gateway.options import beyond_small_model
from serving.gateway.recorder import INLINE_BYTES, RECORD_BYTES, Recorder
from serving.gateway.routes import AdapterRoute, Snapshot
from serving.gateway.routing import MODEL_PREFIX, Router
from serving.gateway.scopes import Scopes
from serving.gateway.small_calls import SmallCalls
from serving.gateway.streaming import completion
from serving.gateway.upstream import Teacher

OUR_MODEL = "nightschool"
"""The model name of a caller who wants whatever Night School thinks best."""
ABORTED_SECONDS = 60.0
MAX_ABORTED = 10_000
SendText = Callable[[str], Awaitable[None]]


class Answering:
    """Decides and carries out who answers a call. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        snapshot: Callable[[], Snapshot],
        router: Callable[[], Router],
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
        self._metrics = metrics
        self._opinions = SecondOpinions(
            settings,
            snapshot=snapshot,
            teacher=teacher,
            ask_small=self._ask_unseen,
            body=lambda call: self.teacher_body(call, whole=True),
            guard=self._guard,
            audits=audits,
            shadows=shadows,
            metrics=metrics,
        )
        # Sessions whose last text was broken off: their retry is the teacher's.
        self._aborted: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._router = router
        self._rules = anonymizer.rules
        self._redactor = ThreadPoolExecutor(2, thread_name_prefix="redactor")

    def close(self) -> None:
        self._redactor.shutdown(wait=False, cancel_futures=True)

    async def try_small_model(
        self, call: Call, headers: Mapping[str, str], send: SendText | None = None
    ) -> dict[str, Any] | None:
        """The response when the small model may and can answer; else None and the call knows why.

        Sets the call's task, assignment, and escalation, and ``hedged`` when the teacher was asked
        beside a slow small model and was first.

        Args:
            headers: for the teacher.
            send: gives text to a streaming caller before the answer is complete; None: whole only.

        Raises:
            TextTurnedBad: the caller has part of a text that must not be finished.
        """
        look = not self._small.too_long(call.chat.size_bytes)
        router = self._router()
        found = router.structure(call.chat.body, call.chat.tag) if look else None
        if found is not None and not router.served(found):
            call.undecided = router, found
            return None
        call.routed = router.route(
            call.chat.body, call.chat.tag, call.tenant, look=look, found=found
        )
        call.assignment = await self._assign(call)
        if call.assignment.answerer is not None and self._was_aborted(call):
            # Its arm stays: what the abort cost is the arm's to answer for.
            call.assignment = dataclasses.replace(call.assignment, escalation="retry_after_abort")
        call.escalation = call.assignment.escalation
        adapter = call.assignment.answerer
        if adapter is None or (call.escalation and call.escalation != "kill_switch"):
            return None
        early = await self._early(call, adapter, send)
        try:
            small = call.small = await self._ask(call, adapter, headers, early)
            if small.accepted and small.message is not None:
                message = self._scope(call).restore(small.message)
                checks = checked(message, call.chat.body)
                if checks.passed:
                    if early is not None and early.begun:
                        await early.finish(str(message.get("content") or ""))
                    self._guard(call, small)
                    return completion(
                        call.id,
                        adapter.name,
                        message,
                        prompt_tokens=small.usage.prompt_tokens,
                        completion_tokens=small.usage.completion_tokens,
                    )
                # Fits the schema with a placeholder in it, and not with the value.
                small = call.small = dataclasses.replace(
                    small,
                    accepted=False,
                    checks=checks,
                    escalation=f"checks:{checks.reason}"[:120],
                )
            if early is not None and early.begun:
                raise TextTurnedBad(small.escalation or "the text changed while it was read")
        except TextTurnedBad as problem:
            if call.small is None:
                call.small = Small(adapter.name, hard_failure=True)
            call.small = dataclasses.replace(
                call.small, accepted=False, escalation=f"aborted:{problem.reason}"[:120]
            )
            call.escalation = call.small.escalation
            self._guard(call, call.small)
            self._remember_aborted(call)
            raise
        self._guard(call, small)
        call.escalation = call.escalation or small.escalation
        return None

    def meanwhile(self, call: Call) -> None:
        """What the caller's answer does not depend on, for the time that the teacher takes.

        Cheap the second time. Routing is done once. Anonymizing that fails here, or whose session is
        being anonymized in a thread just then, is done when the record is made.
        """
        undecided, call.undecided = call.undecided, None
        if undecided is not None:
            router, found = undecided
            call.routed = router.route(call.chat.body, None, call.tenant, found=found)
        if call.redacted is None and call.chat.size_bytes <= INLINE_BYTES:
            with contextlib.suppress(Exception):
                call.redacted = self._scope(call).redacted_now(call.chat.logged())

    def teacher_body(self, call: Call, *, whole: bool = False) -> dict[str, Any]:
        """The request for the teacher; ``whole``: not streamed."""
        model = call.chat.model
        ours = (
            not model
            or model == OUR_MODEL
            or model.startswith(MODEL_PREFIX)
            or self._names_ours(model, call.tenant)
        )
        body = call.chat.forwarded(self.settings.teacher.model if ours else None)
        if whole:
            body = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
        return body

    def _names_ours(self, model: str, tenant: str) -> bool:
        """Whether a task or an adapter of that name may be known to the tenant. Another tenant's
        name goes on as it is, like any word that is nobody's: its answer must not tell them apart."""
        task = self._router().named(model.partition("@")[0])
        if task is None or task.tenant not in (None, tenant):
            return False
        return "@" not in model or model in self._snapshot().adapters()

    def finish(self, call: Call, headers: Mapping[str, str]) -> asyncio.Future[bool]:
        """Count and log the call, and gather second opinions. Once per call.

        Args:
            headers: for the teacher, should it be asked once more.

        The future is True once the record is in the spool.
        """
        self._metrics.answered(
            call.task_id or "", call.answerer, call.escalation, call.latency_seconds
        )
        self._count_tokens(call)
        wanted = self._opinions.wanted(call)
        if not wanted:
            return self._log(call)
        # Safe at once, and once more when it is complete.
        logged = self._log(call, provisional=True)
        self._opinions.gather(call, wanted, headers, lambda: self._log(call))
        return logged

    async def _ask(
        self,
        call: Call,
        adapter: AdapterRoute,
        headers: Mapping[str, str],
        early: EarlyText | None,
    ) -> Small:
        growing = early.grown if early is not None else None
        asked = self._small.ask(adapter, (await self._redacted(call)).request, growing)
        after_seconds = self.settings.gateway.hedge_after_seconds
        if not after_seconds or early is not None:
            return await asked
        small, call.hedged = await raced(
            asked,
            adapter.name,
            after_seconds,
            lambda: self.teacher.ask(self.teacher_body(call, whole=True), headers),
        )
        return small

    async def _ask_unseen(self, adapter: AdapterRoute, call: Call) -> Small:
        return await self._small.ask(adapter, (await self._redacted(call)).request)

    async def _early(
        self, call: Call, adapter: AdapterRoute, send: SendText | None
    ) -> EarlyText | None:
        hold = self.settings.gateway.stream_hold_tokens
        if send is None or not may_stream(call.chat.body, hold):
            return None
        if adapter.threshold is not None and adapter.confidence != MEAN:
            # A mean settles; a sum or a least token only falls, so nothing is sure before the end.
            return None
        return EarlyText(
            hold,
            adapter.threshold,
            frozenset(placeholders((await self._redacted(call)).request)),
            self._scope(call).restore,
            send,
        )

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
        if routed.structure is None or routed.structure.uncheckable(body):
            return TEACHER
        if self._rules.drops and not self._rules.restorable((await self._redacted(call)).counts):
            return TEACHER  # what was dropped cannot be put back into an answer
        self._holdings.called(task)
        return assign(
            task,
            call.chat.session,
            ready=self._holdings.ready,
            killed=self._kills.killed(task.rollout_id),
            tended=tended(task, utc_now(), self.settings.gateway.dead_man_seconds),
            champion_killed=self._kills.champion_killed(task),
        )

    def _guard(self, call: Call, small: Small) -> None:
        """Tell the kill switch what the candidate did, or the champion."""
        if call.routed is None:
            return
        task = call.routed.task
        passed = small.message is not None and small.checks.passed
        reason = small.escalation or "accepted"
        if task.candidate is not None and task.candidate.name == small.adapter:
            limit = task.slow_seconds
            kill = self._kills.report(
                task,
                small.hard_failure,
                passed,
                reason,
                slow=limit is not None and small.latency_seconds > limit,
                unsafe=small.unsafe,
            )
        elif task.champion is not None and task.champion.name == small.adapter:
            # An engine in trouble is not the champion's doing: its breaker sees to that.
            own = small.hard_failure and small.message is not None
            kill = self._kills.report_champion(task, own, passed, reason)
        else:
            return
        if kill is not None:
            self._metrics.kills.labels(task.id).inc()

    def _count_tokens(self, call: Call) -> None:
        """What it took, and what it would have cost."""
        if call.by_small_model and call.small is not None:
            usage = call.small.usage
            tokens = usage.prompt_tokens + usage.completion_tokens
            price = self.settings.teacher.cost_per_million_tokens
            self._metrics.saved(call.task_id or "", tokens, tokens * price / 1e6)

    def _remember_aborted(self, call: Call) -> None:
        self._aborted[call.tenant, call.chat.session] = time.monotonic() + ABORTED_SECONDS
        while len(self._aborted) > MAX_ABORTED:
            self._aborted.popitem(last=False)

    def _was_aborted(self, call: Call) -> bool:
        if not self._aborted:
            return False
        until = self._aborted.get((call.tenant, call.chat.session))
        return until is not None and time.monotonic() < until

    def _log(self, call: Call, *, provisional: bool = False) -> asyncio.Future[bool]:
        scope = self._scope(call)
        teacher, small = self.settings.teacher.model, self.settings.engine.base_model

        def make() -> StoredLine:
            redacted = call.redacted
            fields = call.fields(teacher, small, redacted)
            try:
                return stored_fields(scope.fields(fields, redacted))
            except RecordDropped:
                if not fields["other_answers"]:
                    raise
                # What was logged already is made final as it was.
                return stored_fields(scope.fields({**fields, "other_answers": []}, redacted))

        held = call.chat.size_bytes + call.answer_bytes + RECORD_BYTES
        # A long request of the same session may be in a thread's hands: the loop does not wait for that.
        return self._recorder.put(make, held, provisional=provisional, inline=not scope.busy)

    async def _redacted(self, call: Call) -> Redacted:
        """The request as the small model sees it. A long one in a thread."""
        if call.redacted is None:
            scope, request = self._scope(call), call.chat.logged()
            if call.chat.size_bytes <= INLINE_BYTES:
                call.redacted = scope.redacted_now(request)
            if call.redacted is None:
                loop = asyncio.get_running_loop()
                call.redacted = await loop.run_in_executor(self._redactor, scope.redacted, request)
        return call.redacted

    def _scope(self, call: Call) -> Scope:
        return self.scopes.of(call.tenant, call.chat.session)
