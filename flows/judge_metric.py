"""The judge's metric of a judgement: first whom it agrees with, then the test's rows. No Prefect.

It is asked only where the gate names it for the task, and about the test only if people agree with it:
a budget must not go where it decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from evaluators.further import MetricEvidence
from evaluators.judge.asking import JudgeAway, Judgements
from evaluators.judge.budget import Budget, clear_spent, day_of, night_of
from evaluators.judge.opinions import (
    Calibration,
    Labelled,
    Opinion,
    ask_in_order,
    both,
    by_lot,
    calibrate,
    compare,
    grade,
)
from flows.compared_pairs import Pair
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.settings.judging import JUDGE, is_for
from trainers.data_sets.golden_places import judged_cases
from trainers.data_sets.opinions import opinions
from trainers.data_sets.versions import DatasetVersion

Say = Callable[[str], None]
LABELLED = "reports/judge/labelled/"
AskedFor = Literal["night", "look"]
"""Each has a budget of its own: whoever looks at an adapter by day takes nothing from the night."""
BUDGET_ENDED: Mapping[AskedFor, str] = {
    "night": "the judge's budget of this night ended before its last verdict: what it said is kept, "
    "another night asks for the rest; or raise judge.calls_per_night or judge.money_per_night",
    "look": "the judge's budget of today's looks ended before its last verdict: what it said is kept, "
    "look again tomorrow; or raise judge.look_calls_per_day or judge.look_money_per_day",
}


async def meet_people(
    context: Context,
    dataset: DatasetVersion,
    say: Say = lambda _: None,
    asked_for: AskedFor = "night",
) -> Calibration | None:
    """How far people agree with the judge; None where the gate does not name it for the task.

    Raises JudgeAway: it gives no verdicts now, or its budget is spent. ObjectStoreError.
    """
    if JUDGE not in named_metrics(context, dataset.task_id):
        return None
    # Not by data set: what people said stays the same in the next one, and is paid for once.
    async with _open(context, f"{LABELLED}{dataset.task_id}/", asked_for) as judge:
        labelled = await asyncio.to_thread(_labelled, context, dataset)
        people = await calibrate(judge, labelled)
        say(f"the judge: {people.agreement.told}, {judge.asked} calls")
        if people.left_out:
            raise JudgeAway(BUDGET_ENDED[asked_for])
        await asyncio.to_thread(judge.clear_others)
    return people


async def by_judge(
    context: Context,
    dataset: DatasetVersion,
    pairs: Sequence[Pair],
    people: Calibration,
    say: Say,
    asked_for: AskedFor = "night",
) -> tuple[MetricEvidence, dict[str, float]]:
    """Evidence of the judge, and its opinion of the candidate's own answers by example.

    Rows are taken by lot, up to ``max_rows`` on which the answers differ.

    Raises JudgeAway, also where the budget ends before the last row: no decision that is kept may
    hang on what was left of it. ObjectStoreError.
    """
    settings = context.settings.judge
    notes = {
        "model": settings.model,
        "mode": settings.mode,
        "asked": 0,
        "agreement": people.agreement.to_dict(),
        "cut": people.cut,
    }
    doubt = _doubt(context, people)
    if doubt is not None:
        return MetricEvidence((), doubt, notes), {}
    taken: list[Pair] = []
    asked: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: by_lot(pair.example.call_id)):
        if not pair.same:
            if len(asked) == settings.max_rows:
                break
            asked.append(pair)
        taken.append(pair)
    async with _open(context, f"reports/judge/{dataset.digest}/", asked_for) as judge:
        questions = [partial(_opinion, judge, pair, people.cut) for pair in asked]
        said = await ask_in_order(questions, settings.concurrency)
        say(f"the judge: {len(taken)} rows, {judge.asked} calls")
    if len(said) < len(asked):
        raise JudgeAway(BUDGET_ENDED[asked_for])
    opinion = {pair.example.call_id: found for pair, found in zip(asked, said, strict=True)}
    rows, stages = [], {}
    for pair in taken:
        found = opinion.get(pair.example.call_id, Opinion(0.0))
        rows.append(pair.row(found.value, found.failure))
        if not pair.same:
            stages[pair.example.call_id] = 0.0 if found.failure else (found.value + 1) / 2
    return MetricEvidence(tuple(rows), None, notes | {"asked": len(said)}), stages


def named_metrics(context: Context, task_id: str) -> set[str]:
    """The metrics that the gate asks for of a task."""
    task = task_names(context, task_id)
    return {item.name for item in context.settings.gate.metrics if is_for(item, task)}


def task_names(context: Context, task_id: str) -> set[str]:
    """The id and the name of a task: what settings may call it."""
    return {task_id, context.registry.task(task_id).name}


def _open(context: Context, prefix: str, asked_for: AskedFor) -> Judgements:
    settings, now, zone = context.settings.judge, utc_now(), context.settings.night.timezone
    clear_spent(context.store, now)
    if asked_for == "night":
        name, calls, money = night_of(now, zone), settings.calls_per_night, settings.money_per_night
    else:
        name = f"looks-{day_of(now, zone)}"
        calls, money = settings.look_calls_per_day, settings.look_money_per_day
    budget = Budget(context.store, name, calls=calls, money=money)
    return Judgements(settings, context.store, budget, prefix)


async def _opinion(judge: Judgements, pair: Pair, cut: float) -> Opinion:
    """Of the candidate's answer against the incumbent's: 1, 0 or -1."""
    request = pair.example.request
    if judge.settings.mode == "pairwise":
        return await compare(judge, request, pair.candidate, pair.incumbent)
    ours, theirs = await both(
        grade(judge, request, pair.candidate), grade(judge, request, pair.incumbent)
    )
    difference = float(ours.value >= cut) - float(theirs.value >= cut)
    return Opinion(difference, ours.failure or theirs.failure)


def _doubt(context: Context, people: Calibration) -> str | None:
    """Why the judge's word cannot be relied on, if it cannot."""
    settings, agreed = context.settings.judge, people.agreement
    if settings.min_labelled == 0 and agreed.rows == 0:
        return None
    if agreed.rows < settings.min_labelled:
        return (
            f"people labelled {agreed.rows} answers that it was asked about, fewer than the "
            f"{settings.min_labelled} that show whether it agrees with them"
        )
    if agreed.low is None or agreed.low < settings.min_kappa:
        return f"its agreement with people is not shown: {agreed.told}, asked are {settings.min_kappa:g}"
    return None


def _labelled(context: Context, dataset: DatasetVersion) -> list[Labelled]:
    """People's corrections and feedback, and the answers that they pinned."""
    found = opinions(
        context.store,
        context.database,
        context.settings,
        dataset.task_id,
        context.settings.judge.max_labelled,
    )
    golden = judged_cases(context.store, context.database, dataset)
    return [
        *(Labelled(row.id, row.request, row.answer, row.good, row.better) for row in found),
        *(Labelled(case.id, case.request, case.answer, True) for case in golden),
    ]
