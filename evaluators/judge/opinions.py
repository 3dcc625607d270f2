"""The judge's opinion of answers: one against another, or each by a rubric; and how far people share it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from typing import Any, NamedTuple, TypeVar, cast

from evaluators.judge.agreement import Agreement, agreement, cut_and_agreement
from evaluators.judge.asking import BudgetSpent, Judgements
from evaluators.judge.questions import grade_question, pair_question
from evaluators.judge.verdicts import read_choice, read_grades
from infra.prompting.values import Message

T = TypeVar("T")


class Opinion(NamedTuple):
    """Of the first answer against the second, or of one answer alone."""

    value: float
    """Pairwise: 1 (better), 0 (tie), -1 (worse). Rubric: mean score, 0 to 1."""
    failure: str | None = None


@dataclass(frozen=True)
class Labelled:
    """An answer that people said is good or bad, with a better one where they gave one."""

    id: str
    request: Mapping[str, Any]
    answer: Message
    good: bool
    better: Message | None = None


@dataclass(frozen=True)
class Calibration:
    """What people's labels say of the judge."""

    agreement: Agreement
    cut: float
    left_out: int = 0
    """Labelled rows that were not asked, as the budget was spent."""


async def compare(
    judge: Judgements, request: Mapping[str, Any], first: Message, second: Message
) -> Opinion:
    """Both orders are asked; where they contradict each other it is a tie.

    Raises BudgetSpent, JudgeAway, ObjectStoreError.
    """
    criteria = judge.settings.criteria
    ask = partial(pair_question, criteria, request)
    (one, failed), (other, failed_too) = await both(
        judge.verdict(ask(first, second), read_choice),
        judge.verdict(ask(second, first), read_choice),
    )
    failure = failed or failed_too
    if failure is not None:
        return Opinion(-1.0, failure)
    if (one, other) == ("first", "second"):
        return Opinion(1.0)
    return Opinion(-1.0 if (one, other) == ("second", "first") else 0.0)


async def grade(judge: Judgements, request: Mapping[str, Any], answer: Message) -> Opinion:
    """One answer by every criterion. Raises BudgetSpent, JudgeAway, ObjectStoreError."""
    settings = judge.settings
    grades, failure = await judge.verdict(
        grade_question(settings.criteria, settings.scale, request, answer),
        partial(read_grades, criteria=settings.criteria, scale=settings.scale),
    )
    if failure is not None:
        return Opinion(0.0, failure)
    span = settings.scale - 1
    return Opinion(sum(value - 1 for value in grades.values()) / span / len(grades))


async def calibrate(judge: Judgements, labelled: Sequence[Labelled]) -> Calibration:
    """Ask about answers that people have judged, ``max_labelled`` at most, in an order that says nothing.

    Pairwise only those are asked for which people gave a better answer.
    """
    settings = judge.settings
    pairwise = settings.mode == "pairwise"
    rows = [row for row in labelled if not pairwise or row.better is not None]
    rows = sorted(rows, key=lambda row: by_lot(row.id))[: settings.max_labelled]
    found = await ask_in_order([partial(_about, judge, row) for row in rows], settings.concurrency)
    rows, left_out = rows[: len(found)], len(rows) - len(found)
    if pairwise:
        # Which of the two stands first is drawn, so that always saying "first" agrees with nobody.
        people = [_drawn(row) for row in rows]
        chosen = [_choice(row, opinion) for row, opinion in zip(rows, found, strict=True)]
        return Calibration(agreement(people, chosen), settings.cut, left_out)
    scores = [None if opinion.failure else opinion.value for opinion in found]
    good = [row.good for row in rows]
    if len(rows) < max(settings.min_labelled, 2):
        cut = settings.cut
        said = [None if score is None else score >= cut for score in scores]
        return Calibration(agreement(good, said), cut, left_out)
    cut, agreed = cut_and_agreement(scores, good, settings.cut)
    return Calibration(agreed, cut, left_out)


async def ask_in_order(
    questions: Sequence[Callable[[], Awaitable[Opinion]]], concurrency: int
) -> list[Opinion]:
    """Opinions up to the first question that the budget had nothing left for.

    Raises JudgeAway, ObjectStoreError; the questions not answered by then are dropped.
    """
    found: dict[int, Opinion] = {}
    waiting = iter(range(len(questions)))
    spent = False

    async def work() -> None:
        nonlocal spent
        for place in waiting:
            if spent:
                return
            try:
                found[place] = await questions[place]()
            except BudgetSpent:
                spent = True

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(questions))):
                group.create_task(work())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    return [found[place] for place in takewhile(found.__contains__, count())]


async def both(one: Awaitable[T], other: Awaitable[T]) -> tuple[T, T]:
    """Both results; where one fails the other is still waited for, as its verdict is paid."""
    found = await asyncio.gather(one, other, return_exceptions=True)
    for item in found:
        if isinstance(item, BaseException):
            raise item
    first, second = found
    return cast("T", first), cast("T", second)


def by_lot(name: str) -> str:
    """A place in line that says nothing of what stands there."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


async def _about(judge: Judgements, row: Labelled) -> Opinion:
    if judge.settings.mode == "rubric" or row.better is None:
        return await grade(judge, row.request, row.answer)
    return await compare(judge, row.request, row.better, row.answer)


def _drawn(row: Labelled) -> str:
    return "first" if int(by_lot(row.id)[-1], 16) % 2 else "second"


def _choice(row: Labelled, opinion: Opinion) -> str | None:
    if opinion.failure is not None:
        return None
    if opinion.value == 0:
        return "tie"
    right = _drawn(row)
    return right if opinion.value > 0 else {"first": "second", "second": "first"}[right]
