"""Further metrics of a judgement: stages that the gate asks for, scorers of packages, the judge. No Prefect.

Each compares, on the test's rows, what the caller would get of the candidate with what it gets today.
Where both say the same there is nothing to score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from evaluators.further import MetricEvidence
from evaluators.judge.opinions import Calibration
from evaluators.replay import Outcome
from evaluators.scorer_process import Scorable, Scored, score_all
from evaluators.scorers import ScorerUnusable
from evaluators.scoring import score_answer
from evaluators.served import Served
from flows.compared_pairs import Message, Pair
from flows.judge_metric import AskedFor, by_judge, named_metrics, task_names
from flows.wiring import Context
from infra.settings.judging import JUDGE, ScorerUse, is_for
from trainers.data_sets.versions import DatasetVersion, Example

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Further:
    """What the further metrics found."""

    evidence: dict[str, MetricEvidence]
    rows: list[Outcome]
    """The candidate's outcomes, with a stage for every metric that scored them."""


async def further_scores(
    context: Context,
    dataset: DatasetVersion,
    examples: Sequence[Example],
    outcomes: Sequence[Outcome],
    served: Sequence[Served],
    incumbent: Mapping[str, tuple[Outcome, Served]] | None,
    people: Calibration | None,
    say: Say,
    asked_for: AskedFor = "night",
) -> Further:
    """Every further metric that the settings know for this task.

    Args:
        outcomes, served: the candidate's, on the examples.
        incumbent: the champion's by example id; None: the teacher, whose answers are the labels.
        people: how far people agree with the judge (``meet_people``); None: it is not asked.
        asked_for: whose budget the judge takes from.

    Raises:
        JudgeAway: the judge gives no verdicts now, or its budget ended before the last one.
        ObjectStoreError.
    """
    gate = context.settings.gate
    task = task_names(context, dataset.task_id)
    pairs = _pairs(examples, outcomes, served, incumbent)
    evidence: dict[str, MetricEvidence] = {}
    rows = list(outcomes)
    named = named_metrics(context, dataset.task_id)
    scorers = {use.name: use for use in gate.scorers if is_for(use, task)}
    for name in sorted(named - set(scorers) - {JUDGE}):
        evidence[name] = _by_stage(name, pairs)
    for name, use in sorted(scorers.items()):
        say(f"scoring by {name}: {len(pairs)} rows")
        evidence[name], stages = await _by_scorer(use, pairs)
        rows = _with_stage(rows, name, stages)
    if people is not None:
        evidence[JUDGE], stages = await by_judge(context, dataset, pairs, people, say, asked_for)
        rows = _with_stage(rows, JUDGE, stages)
    return Further(evidence, rows)


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


def _with_stage(rows: Sequence[Outcome], name: str, values: Mapping[str, float]) -> list[Outcome]:
    return [
        row
        if row.example_id not in values
        else replace(
            row, score=replace(row.score, stages={**row.score.stages, name: values[row.example_id]})
        )
        for row in rows
    ]
