"""Metrics of a package's scorer, of a stage and of the judge, in the scorecard and before the gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluators.details import details_of
from evaluators.gate import GateEvidence, GatePolicy, GateResult, decide
from evaluators.judge.asking import JudgeAway
from evaluators.replay import Outcome
from evaluators.scorecard import make_scorecard
from evaluators.scoring import score_answer
from evaluators.served import gate_rows, serve
from flows.further_scores import Further, by_example, further_scores
from flows.judge_metric import LABELLED, AskedFor, meet_people, task_names
from flows.wiring import Context
from infra.calls.record import Checks
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.registry.registry import Registry
from tests.evaluators.making import says
from tests.scorer_package import offer_scorers
from tests.serving.registry.world import NOW, add_task
from tests.teacher_server import FakeTeacher
from trainers.data_sets.golden import make_case, pin, take_away
from trainers.data_sets.labels import Example
from trainers.data_sets.versions import DatasetVersion

TASK = "mail"
DATASET = DatasetVersion("d" * 64, TASK, f"datasets/{TASK}/{'d' * 64}", {})
ROWS = 80
SURE = -0.1


@pytest.fixture
def server() -> Iterator[FakeTeacher]:
    fake = FakeTeacher({}, lambda body: '{"better": "tie"}')
    yield fake
    fake.close()


@pytest.fixture
def open_with(
    settings: Settings,
    database: Database,
    server: FakeTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Context]:
    add_task(database, TASK)
    offer_scorers(tmp_path, monkeypatch)

    def opened(judge: dict[str, Any] | None = None, **gate: Any) -> Context:
        value = settings.model_dump()
        value["gate"] |= gate
        if judge is not None:
            value["judge"] |= {"url": server.settings.url, "model": "large", "retries": 0} | judge
        changed = Settings.model_validate(value)
        store = open_store(changed.storage)
        return Context(changed, store, database, Registry(database), {}, "t:1")

    return opened


def examples() -> list[Example]:
    return [
        Example(
            f"c{n}",
            f"default/s{n}",
            NOW,
            {"messages": [{"role": "user", "content": f"what of {n}?"}]},
            says(f"It is number {n}, and it is ready."),
            1.0,
            "teacher",
            "s",
        )
        for n in range(ROWS)
    ]


def answered(texts: Callable[[int], str | None]) -> list[Outcome]:
    found = []
    for n, example in enumerate(examples()):
        text = texts(n)
        message = None if text is None else says(text)
        score = score_answer(example.answer, message, example.request, thorough=True)
        checks = Checks(parsed=message is not None)
        found.append(Outcome(example.call_id, example.session, message, checks, SURE, score, 0.1))
    return found


def right(n: int) -> str:
    return f"It is number {n}, and it is ready."


def other(n: int) -> str:
    """Other words on every fourth prompt."""
    return f"Number {n} is done!" if n % 4 == 0 else right(n)


async def further(
    context: Context,
    outcomes: list[Outcome],
    champion: list[Outcome] | None = None,
    asked_for: AskedFor = "night",
) -> Further:
    today = None if champion is None else by_example(champion, serve(champion, None))
    people = await meet_people(context, DATASET, asked_for=asked_for)
    return await further_scores(
        context,
        DATASET,
        examples(),
        outcomes,
        serve(outcomes, None),
        today,
        people,
        lambda _: None,
        asked_for,
    )


def decided(context: Context, found: Further, outcomes: list[Outcome]) -> GateResult:
    """The gate on further metrics alone: by correctness the candidate is perfect."""
    perfect = [replace(row, score=replace(row.score, correct=1.0)) for row in outcomes]
    base = [replace(row, score=replace(row.score, correct=0.0)) for row in outcomes]
    evidence = GateEvidence(
        "mail@0123456789abcdef", "teacher", gate_rows(perfect, None, base=base),
        metrics=found.evidence,
    )  # fmt: skip
    policy = replace(
        GatePolicy.from_settings(context.settings.gate, task_names(context, TASK)), slices=()
    )
    result = decide(policy, evidence)
    again = decide(
        GatePolicy.from_dict(json.loads(json.dumps(policy.to_dict()))),
        GateEvidence.from_dict(json.loads(json.dumps(evidence.to_dict()))),
    )
    assert again == result, "a stored decision replays"
    return result


SCORER = {"name": "length", "use": "length", "options": {"longest": 30}}
PEOPLE = {"min_labelled": 0}


async def test_a_scorer_is_in_the_scorecard_and_may_be_asked_for(
    open_with: Callable[..., Context],
) -> None:
    context = open_with(scorers=[SCORER], metrics=[{"name": "length", "margin": 0.05}])
    outcomes = answered(right)
    found = await further(context, outcomes)
    card = make_scorecard("a", "d" * 64, found.rows, details=details_of(examples(), found.rows))
    assert (card.stages["length"]["rows"], card.stages["length"]["mean"]) == (ROWS, 1.0)
    assert card.details["kind"] == "text"
    assert decided(context, found, outcomes).verdict == "pass"
    short = answered(lambda n: "no")
    worse = await further(context, short)
    result = decided(context, worse, short)
    assert result.verdict == "fail" and "length" in result.reasons[0]
    elsewhere = open_with(
        scorers=[SCORER | {"tasks": ["Task other"]}],
        metrics=[{"name": "length", "tasks": ["Task other"]}],
    )
    nothing = await further(elsewhere, short)
    assert nothing.evidence == {} and decided(elsewhere, nothing, short).verdict == "pass"


@pytest.mark.parametrize(
    ("use", "says_", "why"),
    [
        ("odd", "raises", "it raised ValueError"),
        ("odd", "nan", "NaN is no score"),
        ("absent", "fine", "no installed package offers the scorer 'absent'"),
    ],
)
async def test_a_scorer_that_fails_passes_nobody_and_is_named(
    open_with: Callable[..., Context], use: str, says_: str, why: str
) -> None:
    context = open_with(
        scorers=[{"name": "ours", "use": use}], metrics=[{"name": "ours", "margin": 0.5}]
    )
    outcomes = answered(lambda n: says_ if n % 5 == 0 else right(n))
    result = decided(context, await further(context, outcomes), outcomes)
    assert result.verdict == "inconclusive" and why in result.reasons[0]
    unasked = open_with(scorers=[{"name": "ours", "use": use}])
    assert decided(unasked, await further(unasked, outcomes), outcomes).verdict == "pass"


async def test_a_stage_may_be_asked_for_and_a_missing_metric_passes_nobody(
    open_with: Callable[..., Context],
) -> None:
    outcomes = answered(lambda n: "I do not know!")
    strict = open_with(metrics=[{"name": "chrf", "margin": 0.05}])
    result = decided(strict, await further(strict, outcomes), outcomes)
    assert result.verdict == "fail" and "chrf" in result.reasons[0]
    same = answered(right)
    assert decided(strict, await further(strict, same), same).verdict == "pass"
    missing = open_with(metrics=[{"name": "wit", "margin": 0.5}])
    result = decided(missing, await further(missing, same), same)
    assert result.verdict == "inconclusive"
    assert result.reasons[0] == "the metric wit is missing: no test row has a score of it"


async def test_against_an_adapter_its_own_answers_stand_there(
    open_with: Callable[..., Context],
) -> None:
    context = open_with(scorers=[SCORER], metrics=[{"name": "length", "margin": 0.05}])
    short = answered(lambda n: "no")
    found = await further(context, answered(right), champion=short)
    assert [row.difference for row in found.evidence["length"].rows] == pytest.approx(
        [28 / 30] * ROWS
    )


async def test_the_judge_is_a_metric_and_asked_only_where_the_answers_differ(
    open_with: Callable[..., Context], server: FakeTeacher
) -> None:
    context = open_with(judge=PEOPLE, metrics=[{"name": "judge"}])
    outcomes = answered(other)
    found = await further(context, outcomes)
    assert len(server.asked) == 2 * ROWS / 4
    assert decided(context, found, outcomes).verdict == "pass"
    card = make_scorecard("a", "d" * 64, found.rows)
    assert (card.stages["judge"]["rows"], card.stages["judge"]["mean"]) == (ROWS / 4, 0.5)
    again = await further(context, outcomes)
    assert again.evidence == found.evidence and len(server.asked) == 2 * ROWS / 4
    kept = [context.store.get(item.key).decode() for item in context.store.list("reports/judge/d")]
    assert len(kept) == 40 and not any("number" in text for text in kept), "no text is kept"


def prefers(whose: str) -> Callable[[dict[str, Any]], str]:
    """A judge that tells the teacher's words from others and finds these better or worse."""

    def reply(body: dict[str, Any]) -> str:
        shown = json.loads(body["messages"][-1]["content"])
        teachers = "first" if "and it is ready" in shown["first"]["content"] else "second"
        others = {"first": "second", "second": "first"}[teachers]
        return json.dumps({"better": teachers if whose == "teacher" else others})

    return reply


@pytest.mark.parametrize(
    ("reply", "terms", "verdict", "why"),
    [
        (prefers("other"), {}, "pass", "it answers 100%"),
        (prefers("teacher"), {}, "fail", "a further metric got worse: judge -0.250"),
        (lambda _: "I prefer the first answer: 10/10.", {}, "inconclusive", "not one JSON object"),
        (prefers("other"), {"min_labelled": 30}, "inconclusive", "people labelled 0 answers"),
        (
            lambda _: '{"correct": 5, "form": 5}',
            {"mode": "rubric"},
            "pass",
            "it answers 100%",
        ),
        (
            lambda _: '{"correct": 10, "form": 10}',
            {"mode": "rubric"},
            "inconclusive",
            "outside 1 to 5",
        ),
    ],
)
async def test_only_a_judge_that_judges_and_is_known_to_lets_pass(
    open_with: Callable[..., Context],
    server: FakeTeacher,
    reply: Any,
    terms: dict[str, Any],
    verdict: str,
    why: str,
) -> None:
    server.otherwise = reply
    context = open_with(judge=PEOPLE | terms, metrics=[{"name": "judge"}])
    outcomes = answered(other)
    result = decided(context, await further(context, outcomes), outcomes)
    assert result.verdict == verdict
    assert any(why in reason for reason in result.reasons), result.reasons


async def test_a_judge_that_is_away_ends_the_judging_only_where_it_is_needed(
    open_with: Callable[..., Context], server: FakeTeacher
) -> None:
    server.otherwise = lambda _: 503
    outcomes = answered(other)
    context = open_with(judge=PEOPLE, metrics=[{"name": "judge", "tasks": ["Task other"]}])
    found = await further(context, outcomes)
    assert decided(context, found, outcomes).verdict == "pass"
    assert "judge" not in found.evidence and server.asked == []
    needed = open_with(judge=PEOPLE, metrics=[{"name": "judge"}])
    with pytest.raises(JudgeAway, match="what it said until now is kept"):
        await further(needed, outcomes)


async def test_a_judge_whom_people_are_not_known_to_agree_with_costs_nothing(
    open_with: Callable[..., Context], server: FakeTeacher
) -> None:
    context = open_with(judge={"min_labelled": 30}, metrics=[{"name": "judge"}])
    found = await further(context, answered(other))
    assert "people labelled 0" in (found.evidence["judge"].problem or "") and server.asked == []


async def test_a_spent_budget_decides_nothing_and_the_next_night_asks_for_the_rest(
    open_with: Callable[..., Context], server: FakeTeacher
) -> None:
    outcomes = answered(other)
    poor = open_with(judge=PEOPLE | {"calls_per_night": 30}, metrics=[{"name": "judge"}])
    with pytest.raises(JudgeAway, match="another night asks for the rest"):
        await further(poor, outcomes)
    assert len(server.asked) == 30
    context = open_with(judge=PEOPLE, metrics=[{"name": "judge"}])
    assert decided(context, await further(context, outcomes), outcomes).verdict == "pass"
    assert len(server.asked) == 2 * ROWS / 4


async def test_what_people_labelled_is_paid_for_once_and_kept_as_long_as_it_is_asked(
    open_with: Callable[..., Context], server: FakeTeacher
) -> None:
    server.otherwise = lambda _: '{"correct": 5, "form": 5}'
    context = open_with(judge=PEOPLE | {"mode": "rubric"}, metrics=[{"name": "judge"}])
    pinned = [
        pin(
            context.store,
            context.database,
            make_case(TASK, row.request, row.answer, why="t", by="ann"),
        )
        for row in examples()[:2]
    ]
    people = await meet_people(context, DATASET)
    assert people is not None and people.agreement.rows == 2 and len(server.asked) == 2
    later = replace(DATASET, digest="e" * 64, location=f"datasets/{TASK}/{'e' * 64}")
    assert await meet_people(context, later) == people and len(server.asked) == 2
    take_away(context.store, context.database, TASK, pinned[0].id, why="t", by="ann")
    assert await meet_people(context, later) is not None and len(server.asked) == 2
    assert len(list(context.store.list(LABELLED))) == 1


async def test_a_look_takes_nothing_from_the_night_and_has_a_bound_of_its_own(
    open_with: Callable[..., Context], server: FakeTeacher
) -> None:
    outcomes, terms = answered(other), PEOPLE | {"calls_per_night": 0, "look_calls_per_day": 40}
    context = open_with(judge=terms, metrics=[{"name": "judge"}])
    with pytest.raises(JudgeAway, match=r"calls_per_night"):
        await further(context, outcomes)
    assert server.asked == []
    await further(context, outcomes, asked_for="look")
    assert len(server.asked) == 2 * ROWS / 4
    with pytest.raises(JudgeAway, match=r"look again tomorrow.*look_calls_per_day"):
        await further(context, answered(lambda n: f"Number {n}?"), asked_for="look")
    assert len(server.asked) == 2 * ROWS / 4


def test_a_gate_that_names_a_judge_that_is_not_there_is_refused(settings: Settings) -> None:
    value = settings.model_dump()
    value["gate"]["metrics"] = [{"name": "judge"}]
    with pytest.raises(ValueError, match=r"judge\.model is not set"):
        Settings.model_validate(value)
    value["gate"]["metrics"] = [{"name": "a"}, {"name": "a"}]
    with pytest.raises(ValueError, match="stands twice"):
        Settings.model_validate(value)
