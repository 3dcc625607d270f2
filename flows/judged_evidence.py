"""The judge's word on a canary's answers, on a budget of the day. No Prefect here.

It is asked about a share of the answers that differ from the teacher's to the same prompt, once those
are decided that are decided without it. Its word is kept as a feedback record of its own label beside
the rollout, never in the logs: nothing learns from it. What it may do to a verdict: ``sessions.JUDGED``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from evaluators.judge.asking import BudgetSpent, JudgeAway, Judgements
from evaluators.judge.budget import Budget, day_of
from evaluators.judge.opinions import Opinion, ask_in_order, by_lot, compare, grade
from evaluators.sessions import JUDGED, unique_calls
from flows.kept_evidence import JUDGED_PREFIX, last_forgetting
from flows.wiring import Context
from infra.calls.record import CallRecord, FeedbackRecord
from infra.objects.store import ObjectExists, ObjectMissing, ObjectStore, ObjectStoreError
from infra.prompting.values import same_answer
from infra.settings.judging import Judge
from serving.registry.records import Rollout

logger = logging.getLogger(__name__)

MAX_PER_LOOK = 50
"""Calls that the judge is asked about in one look at a rollout."""
AWAY_SECONDS = 300.0
"""For so long a judge that was away or too slow is not asked: each try takes of the day's budget."""


class JudgedEvidence:
    """Words of the judge on open rollouts; each is read from the store once per process."""

    def __init__(self, context: Context, clock: Callable[[], datetime]) -> None:
        self._context, self._clock = context, clock
        self._read: dict[str, FeedbackRecord] = {}
        self._failed: set[tuple[str, str, str]] = set()
        """Rollout, tenant and call without a verdict: asked again by no later look of this process."""
        self._not_before: datetime | None = None
        self._spent_told = ""
        self._forgetting = 0

    def words(self, rollout_id: str) -> list[FeedbackRecord]:
        """All of a rollout so far. Raises ObjectStoreError."""
        store = self._context.store
        found = []
        for item in store.list(f"{JUDGED_PREFIX}{rollout_id}/words/"):
            if item.key not in self._read:
                with contextlib.suppress(ObjectMissing):
                    self._read[item.key] = FeedbackRecord.model_validate_json(store.get(item.key))
            if item.key in self._read:
                found.append(self._read[item.key])
        return found

    def forget_all_but(self, rollouts: Sequence[str]) -> None:
        """Free what belongs to rollouts that have ended."""
        kept = tuple(f"{JUDGED_PREFIX}{rollout}/" for rollout in rollouts)
        self._read = {key: word for key, word in self._read.items() if key.startswith(kept)}
        self._failed = {item for item in self._failed if item[0] in rollouts}

    @property
    def wanted(self) -> bool:
        settings = self._context.settings.judge
        return settings.model is not None and settings.rollout_share > 0

    def ask(self, calls: Sequence[tuple[Rollout, Sequence[CallRecord]]], forgetting: int) -> None:
        """Ask about the calls of rollouts that are new, for ``judging_seconds`` at most.

        What cannot be asked now is left as it is, and asked at a later look while a word still counts.

        Args:
            forgetting: the last one before the calls were read.
        """
        if self._not_before is not None and self._clock() < self._not_before:
            return
        self._forgetting = forgetting
        if last_forgetting(self._context.database) != forgetting:
            return  # somebody's calls may be among these; the next look reads them anew
        share = self._context.settings.judge.rollout_share
        seconds = judging_seconds(self._context)
        try:
            fresh: dict[str, list[CallRecord]] = {}
            for rollout, records in calls:
                if rollout.state != "canary":
                    continue
                done = {(word.tenant, word.call_id) for word in self.words(rollout.id)}
                done |= {item[1:] for item in self._failed if item[0] == rollout.id}
                horizon = timedelta(seconds=rollout.policy.maturity_seconds)
                chosen = worth_asking(records, rollout.id, share, since=self._clock() - horizon)
                new = [call for call in chosen if (call.tenant, call.id) not in done]
                fresh[rollout.id] = new[:MAX_PER_LOOK]
            if any(fresh.values()):
                asyncio.run(asyncio.wait_for(self._ask(fresh, seconds), seconds))
        except (TimeoutError, JudgeAway) as error:
            self._not_before = self._clock() + timedelta(seconds=AWAY_SECONDS)
            why = str(error) or f"the judge took over {seconds:g} seconds"
            logger.warning("no judge of rollouts for %g seconds: %s", AWAY_SECONDS, why)
        except ObjectStoreError as error:
            logger.warning("rollouts are decided without the judge: %s", error)

    async def _ask(self, fresh: Mapping[str, Sequence[CallRecord]], seconds: float) -> None:
        """The last question starts after half the time and has the other half: none is cut off unheard."""
        context = self._context
        settings = within_a_look(context.settings.judge, seconds)
        until = time.monotonic() + seconds / 2
        day = day_of(self._clock(), context.settings.night.timezone)
        budget = Budget(
            context.store, day, calls=settings.calls_per_day, money=settings.money_per_day
        )
        places = settings.concurrency
        if settings.mode == "pairwise":
            places = max(1, places // 2)  # each takes two
        for rollout_id, calls in fresh.items():
            prefix = f"{JUDGED_PREFIX}{rollout_id}/verdicts/"
            async with Judgements(settings, context.store, budget, prefix) as judge:
                asked = [partial(self._one, judge, rollout_id, call, until) for call in calls]
                heard = await ask_in_order(asked, places)
            if len(heard) < len(asked) and time.monotonic() < until and self._spent_told != day:
                self._spent_told = day
                logger.warning("the judge's budget for rollouts is spent until tomorrow")

    async def _one(
        self, judge: Judgements, rollout_id: str, call: CallRecord, until: float
    ) -> Opinion:
        if time.monotonic() > until:
            raise BudgetSpent("the time of this look is")
        opinion = await _opinion(judge, call)
        if opinion.failure is None:
            await asyncio.to_thread(self._keep, rollout_id, call, opinion.value)
        else:
            self._failed.add((rollout_id, call.tenant, call.id))
        return opinion

    def _keep(self, rollout_id: str, call: CallRecord, word: float) -> None:
        record = FeedbackRecord(
            time=self._clock(), tenant=call.tenant, call_id=call.id, score=word, label=JUDGED
        )
        key = f"{JUDGED_PREFIX}{rollout_id}/words/{by_lot(f'{call.tenant}/{call.id}')[:32]}.json"
        with contextlib.suppress(ObjectExists):  # another controller was faster
            self._context.store.create(key, record.model_dump_json().encode())
        if last_forgetting(self._context.database) != self._forgetting:
            # Whoever forgets may have looked for words already, and this may be on their call.
            with contextlib.suppress(ObjectMissing):
                self._context.store.delete(key)


def judging_seconds(context: Context) -> float:
    """How long a look may wait for the judge: gateways must hear of the next one in time."""
    tend = context.settings.rollout.tend_seconds
    return min(tend, context.settings.gateway.dead_man_seconds - tend) / 2


def within_a_look(judge: Judge, seconds: float) -> Judge:
    """Settings by which no question outlasts a look of so many seconds; the next look is the retry."""
    wait = min(judge.timeout_seconds, seconds / 2)
    return judge.model_copy(update={"timeout_seconds": wait, "retries": 0})


def worth_asking(
    calls: Sequence[CallRecord], rollout_id: str, share: float, *, since: datetime
) -> list[CallRecord]:
    """Calls whose canary answer differs from the teacher's to the same prompt, drawn by lot. Pure.

    Args:
        since: of older ones a word comes too late to count.
    """
    found = []
    for call in unique_calls(calls):
        by = call.answered_by
        shown = by.arm == "canary" and by.adapter is not None and by.escalation is None
        if by.rollout != rollout_id or not shown or call.time < since:
            continue
        if call.answer is None or call.audit is None or same_answer(call.answer, call.audit):
            continue
        if int(by_lot(f"{rollout_id}/{call.tenant}/{call.id}")[:8], 16) < share * 16**8:
            found.append(call)
    return found


def words_of(store: ObjectStore, whose: Callable[[FeedbackRecord], bool]) -> Iterator[str]:
    """Keys of the words on somebody's calls. Raises ObjectStoreError."""
    for item in store.list(JUDGED_PREFIX):
        if "/words/" in item.key:
            with contextlib.suppress(ObjectMissing):
                if whose(FeedbackRecord.model_validate_json(store.get(item.key))):
                    yield item.key


async def _opinion(judge: Judgements, call: CallRecord) -> Opinion:
    """1: as good as the teacher's answer, 0: worse; with a failure it stays what it was."""
    assert call.answer is not None and call.audit is not None  # see worth_asking
    if judge.settings.mode == "rubric":
        opinion = await grade(judge, call.request, call.answer)
        return opinion._replace(value=float(opinion.value >= judge.settings.cut))
    opinion = await compare(judge, call.request, call.answer, call.audit)
    return opinion._replace(value=float(opinion.value >= 0))
