"""Further metrics of a judgement: stages that the gate asks for, scorers of packages, the judge. No Prefect.

Each compares, on the test's rows, what the caller would get of the candidate with what it gets today.
Where both say the same there is nothing to score.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from evaluators.further import MetricEvidence, MetricRow
from evaluators.judge.asking import JudgeAway, Judgements
from evaluators.judge.budget import Budget, clear_spent, night_of
from evaluators.judge.opinions import (
    Calibration,
    Labelled,
    Opinion,
    ask_in_order,
    by_lot,
    calibrate,
    compare,
    grade,
)
from evaluators.judge.questions import same_answer
from evaluators.replay import Outcome
from evaluators.scorer_process import Scorable, Scored, score_all
from evaluators.scorers import ScorerUnusable
from evaluators.scoring import score_answer
from evaluators.served import Served
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.settings.judging import JUDGE, ScorerUse
from trainers.data_sets.golden import judged_cases
from trainers.data_sets.opinions import opinions
from trainers.data_sets.versions import DatasetVersion, Example

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Further:
    """What the further metrics found."""

    evidence: dict[str, MetricEvidence]
    rows: list[Outcome]
    """The candidate's outcomes, with a stage for every metric that scored them."""


class Pair(NamedTuple):
    """One test row: what the caller would get, and what it gets today; None: nothing."""

    example: Example
    own: Outcome
    candidate: Message | None
    incumbent: Message | None

    @property
    def same(self) -> bool:
        return same_answer(self.candidate, self.incumbent)

    def row(self, difference: float, failure: str | None = None) -> MetricRow:
        if failure is not None:
            difference = -1.0
        return MetricRow(self.example.call_id, self.example.session, difference, failure)


async def further_scores(
    context: Context,
    dataset: DatasetVersion,
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    served: Sequence[Served],
    incumbent: Mapping[str, tuple[Outcome, Served]] | None,
    say: Say,
) -> Further:
    """Every further metric that the settings know for this task.

    Args:
        outcomes, served: the candidate's, on the examples.
        incumbent: the champion's by example id; None: the teacher, whose answers are the labels.

    Raises:
        JudgeAway: the gate asks for the judge, and it gives no verdicts now.
        ObjectStoreError.
    """
    gate = context.settings.gate
    task = task_names(context, dataset.task_id)
    pairs = _pairs(examples, outcomes, served, incumbent)
    evidence: dict[str, MetricEvidence] = {}
    rows = list(outcomes)
    named = {item.name for item in gate.metrics if not item.tasks or task & set(item.tasks)}
    scorers = {use.name: use for use in gate.scorers if not use.tasks or task & set(use.tasks)}
    for name in sorted(named - set(scorers) - {JUDGE}):
        evidence[name] = _by_stage(name, pairs)
    for name, use in sorted(scorers.items()):
        say(f"scoring by {name}: {len(pairs)} rows")
        evidence[name], stages = await _by_scorer(use, pairs)
        rows = _with_stage(rows, name, stages)
    if context.settings.judge.model is not None:
        evidence[JUDGE], stages = await _by_judge(context, dataset, pairs, JUDGE in named, say)
        rows = _with_stage(rows, JUDGE, stages)
    return Further(evidence, rows)


def task_names(context: Context, task_id: str) -> set[str]:
    """The id and the name of a task: what settings may call it."""
    return {task_id, context.registry.task(task_id).name}


def by_example(
    said: Sequence[Outcome], served: Sequence[Served]
) -> dict[str, tuple[Outcome, Served]]:
    """Answers with what was shown of them, by example id."""
    return {row.example_id: (row, shown) for row, shown in zip(said, served, strict=True)}


def _pairs(
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    served: Sequence[Served],
    incumbent: Mapping[str, tuple[Outcome, Served]] | None,
) -> list[Pair]:
    labels = {example.call_id: example for example in examples}

    def shown(outcome: Outcome, row: Served) -> Message:
        # Where the small model's answer is not shown the teacher's is, and the label stands for it.
        answer = outcome.message if row.accepted else None
        return labels[outcome.example_id].answer if answer is None else answer

    found = []
    for outcome, row in zip(outcomes, served, strict=True):
        example = labels[outcome.example_id]
        today = example.answer if incumbent is None else shown(*incumbent[outcome.example_id])
        found.append(Pair(example, outcome, shown(outcome, row), today))
    return found


def _by_stage(name: str, pairs: Sequence[Pair]) -> MetricEvidence:
    """A stage of the built-in scores; rows whose kind does not have it are left out."""
    rows = []
    for pair in pairs:
        example = pair.example
        ours, theirs = (
            score_answer(example.answer, answer, example.request, thorough=True).stages.get(name)
            for answer in (pair.candidate, pair.incumbent)
        )
        if ours is not None and theirs is not None:
            rows.append(pair.row(ours - theirs))
    return MetricEvidence(tuple(rows))


async def _by_scorer(
    use: ScorerUse, pairs: Sequence[Pair]
) -> tuple[MetricEvidence, dict[str, float]]:
    """Evidence of a package's scorer, and the scores of the candidate's own answers by example."""
    wanted: dict[tuple[int, str], Scorable] = {}
    for place, pair in enumerate(pairs):
        sides: dict[str, Message | None] = {"own": pair.own.message}
        if not pair.same:
            sides |= {"incumbent": pair.incumbent}
            if pair.candidate is not pair.own.message:
                sides |= {"candidate": pair.candidate}
        for side, answer in sides.items():
            if answer is not None:
                example = pair.example
                wanted[place, side] = Scorable(example.answer, answer, example.request)
    try:
        scores = await score_all(
            use.use, use.options, list(wanted.values()), timeout_seconds=use.timeout_seconds
        )
    except ScorerUnusable as error:
        logger.warning("the scorer %s is left out: %s", use.name, error)
        return MetricEvidence((), str(error)), {}
    scored = dict(zip(wanted, scores, strict=True))
    nothing = Scored(0.0)
    rows, stages = [], {}
    for place, pair in enumerate(pairs):
        own = scored.get((place, "own"), nothing)
        stages[pair.example.call_id] = own.value
        if pair.same:
            # Who gets the same answer today loses nothing; but a scorer that fails shows nothing.
            rows.append(pair.row(0.0, own.failure if pair.candidate is pair.own.message else None))
            continue
        ours = scored.get((place, "candidate"), own)
        theirs = scored.get((place, "incumbent"), nothing)
        rows.append(pair.row(ours.value - theirs.value, ours.failure or theirs.failure))
    return MetricEvidence(tuple(rows)), stages


async def _by_judge(
    context: Context, dataset: DatasetVersion, pairs: Sequence[Pair], needed: bool, say: Say
) -> tuple[MetricEvidence, dict[str, float]]:
    """Evidence of the judge, and its opinion of the candidate's own answers by example.

    Rows are taken by lot, and those before the first that could not be asked count: so they are a
    sample of the test, whatever the budget.
    """
    settings = context.settings.judge
    now = utc_now()
    clear_spent(context.store, now)
    budget = Budget(
        context.store,
        night_of(now, context.settings.night.timezone),
        calls=settings.calls_per_night,
        money=settings.money_per_night,
    )
    taken: list[Pair] = []
    asked: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: by_lot(pair.example.call_id)):
        if not pair.same:
            if len(asked) == settings.max_rows:
                break
            asked.append(pair)
        taken.append(pair)
    prefix = f"reports/judge/{dataset.digest}/"
    try:
        async with Judgements(settings, context.store, budget, prefix) as judge:
            people = await calibrate(judge, await asyncio.to_thread(_labelled, context, dataset))
            questions = [partial(_opinion, judge, pair, people.cut) for pair in asked]
            said = await ask_in_order(questions, settings.concurrency)
            calls = judge.asked
    except JudgeAway as error:
        if needed:
            raise
        logger.warning("judged without the judge: %s", error)
        return MetricEvidence((), str(error)), {}
    if len(said) < len(asked):
        taken = taken[: taken.index(asked[len(said)])]
    opinion = {pair.example.call_id: found for pair, found in zip(asked, said, strict=False)}
    rows, stages = [], {}
    for pair in taken:
        found = opinion.get(pair.example.call_id, Opinion(0.0))
        rows.append(pair.row(found.value, found.failure))
        if not pair.same:
            stages[pair.example.call_id] = 0.0 if found.failure else (found.value + 1) / 2
    spent = len(said) < len(asked) or people.left_out > 0
    say(f"the judge: {people.agreement.told}, {len(rows)} rows, {calls} calls")
    notes = {
        "model": settings.model,
        "mode": settings.mode,
        "asked": len(said),
        "agreement": people.agreement.to_dict(),
        "cut": people.cut,
        "budget_spent": spent,
    }
    return MetricEvidence(tuple(rows), _doubt(context, people, spent), notes), stages


async def _opinion(judge: Judgements, pair: Pair, cut: float) -> Opinion:
    """Of the candidate's answer against the incumbent's: 1, 0 or -1."""
    assert pair.candidate is not None and pair.incumbent is not None  # else they were the same
    request = pair.example.request
    if judge.settings.mode == "pairwise":
        return await compare(judge, request, pair.candidate, pair.incumbent)
    ours, theirs = await asyncio.gather(
        grade(judge, request, pair.candidate), grade(judge, request, pair.incumbent)
    )
    difference = float(ours.value >= cut) - float(theirs.value >= cut)
    return Opinion(difference, ours.failure or theirs.failure)


def _doubt(context: Context, people: Calibration, spent: bool) -> str | None:
    """Why the judge's word cannot be relied on, if it cannot."""
    settings, agreed = context.settings.judge, people.agreement
    if settings.min_labelled == 0 and agreed.rows == 0:
        return None
    if agreed.rows < settings.min_labelled:
        return (
            f"people labelled {agreed.rows} answers that it was asked about, fewer than the "
            f"{settings.min_labelled} that show whether it agrees with them"
            + (", and its budget is spent" if spent else "")
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
    golden = judged_cases(context.store, dataset)
    return [
        *(Labelled(row.id, row.request, row.answer, row.good, row.better) for row in found),
        *(Labelled(case.id, case.request, case.answer, True) for case in golden),
    ]


def _with_stage(rows: Sequence[Outcome], name: str, values: Mapping[str, float]) -> list[Outcome]:
    return [
        row
        if row.example_id not in values
        else replace(
            row, score=replace(row.score, stages={**row.score.stages, name: values[row.example_id]})
        )
        for row in rows
    ]
