"""Judge one adapter through the serving engine: replay, calibrate, score, decide. No Prefect here.

The judgement is written once, as an immutable object, before anything acts on it; a night that is
killed and run again reads it instead of asking the engine twice.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.calibration import calibrate_outcomes
from evaluators.details import details_of
from evaluators.engine_match import Said, compare_with_trainer
from evaluators.gate import TEACHER, GateEvidence, GatePolicy, decide
from evaluators.replay import Answerer, Outcome, replay
from evaluators.scorecard import make_scorecard
from evaluators.scorecard_page import Price, costs_per_thousand
from evaluators.served import Served, gate_rows, serve
from flows.answerers import compared_cards, curves_of
from flows.further_scores import by_example, further_scores
from flows.heard import require_answers, require_golden, require_incumbent
from flows.judge_metric import AskedFor, meet_people, task_names
from flows.judgement import Judgement, tell_mismatch
from flows.judging_inputs import (
    GOLDEN,
    earlier_tests,
    golden_seen,
    honesty_of,
    progress_of,
    right_or_wrong,
    slices_by_example,
    teacher_score,
    trained_prompts,
    tries_before,
)
from flows.letting_go import let_go
from flows.wiring import Context
from infra.artifacts.folder import pull, read_manifest
from infra.objects.store import ObjectExists, ObjectMissing
from infra.prompting.answers import CUT_OFF
from infra.prompting.confidence import MEAN, answers_drawn
from infra.prompting.template import FULL, PromptFormat
from serving.engines.protocol import Engine
from serving.small_model import SmallAnswer, SmallModel
from trainers.data_sets.golden_places import judged_cases
from trainers.data_sets.labels import prompt_key
from trainers.data_sets.versions import DatasetVersion, Example, read_split

ANSWER_SECONDS = 300.0
"""For one answer: nobody waits for it, and an unpruned prompt on a busy processor takes long."""
Say = Callable[[str], None]


def judge(
    context: Context, folder: Path, dataset: DatasetVersion, *, say: Say = lambda _: None
) -> Judgement:
    """Judge the packaged adapter in ``folder`` on the data set's held-out sessions.

    Raises:
        ArtifactError: the folder is no sound adapter. EngineError: no engine answers.
        JudgeAway: the gate asks for the large model as judge, which gives no verdicts now.
    """
    manifest = read_manifest(folder)
    key = f"reports/{manifest.name}/judgement-{dataset.digest[:16]}.json"
    try:
        return Judgement.from_json(context.store.get(key))
    except ObjectMissing:
        pass
    judgement, _ = asyncio.run(ask_and_decide(context, folder, dataset, key, say))
    tell_mismatch(context, judgement)
    try:
        context.store.create(key, judgement.to_json())
    except ObjectExists:
        # Another run was faster; its word is the one that is acted on.
        return Judgement.from_json(context.store.get(key))
    return judgement


async def ask_and_decide(
    context: Context,
    folder: Path,
    dataset: DatasetVersion,
    key: str,
    say: Say,
    asked_for: AskedFor = "night",
) -> tuple[Judgement, list[Outcome]]:
    """Ask the engine everything and decide; keeps nothing but the base model's answers.

    Returns the judgement, which would lie at ``key``, and the answers to the test.
    """
    manifest = read_manifest(folder)
    gate = context.settings.gate
    form = PromptFormat.from_dict(manifest.format)
    validation = read_split(context.store, dataset, "validation")[: gate.max_test_rows]
    test = read_split(context.store, dataset, "test")[: gate.max_test_rows]
    # First of all: where it is away, a whole replay would be for nothing.
    people = await meet_people(context, dataset, say, asked_for)
    earlier = earlier_tests(context, dataset, test, say)
    golden = judged_cases(context.store, context.database, dataset)
    pinned = [case.example() for case in golden]
    async with context.engine() as engine:
        name = manifest.name
        # Gateways leave an adapter alone that no route has named: it may be under judgement.
        loaded_here = await engine.ensure_loaded(name, folder)
        try:
            await engine.probe(name)
            heard: dict[str, Said] = {}
            adapter = _answerer(
                context,
                engine,
                name,
                form,
                every_score=True,
                drawn=gate.drawn_answers,
                heard=heard,
            )

            async def asked(examples: Sequence[Example], what: str) -> list[Outcome]:
                return await _replay(
                    context, adapter, examples, say, f"{name}: {what}", gate.drawn_answers
                )

            calibration_rows = await asked(validation, "validation")
            rows = await asked(test, "test")
            earlier_rows = {
                digest: await asked(rows_, "earlier test") for digest, rows_ in earlier.items()
            }
            golden_rows = right_or_wrong(await asked(pinned, "golden cases"), golden)
            base_rows = await _base_outcomes(
                context,
                manifest.base_digest,
                dataset,
                test[: gate.max_base_rows],
                _answerer(context, engine, None, FULL),
                say,
            )
        finally:
            if loaded_here:
                await let_go(context, engine, manifest.task_id, name)
    asked_before = [row for outcomes in earlier_rows.values() for row in outcomes]
    require_answers([*calibration_rows, *rows, *base_rows, *asked_before])
    require_golden(golden_rows)
    champion, incumbent, champion_rows = await _incumbent(
        context,
        manifest.task_id,
        manifest.name,
        {dataset.digest: test, GOLDEN: pinned, **earlier},
        say,
    )
    not_answered = require_incumbent(
        incumbent, [row for outcomes in champion_rows.values() for row in outcomes]
    )
    threshold = calibrate_outcomes(calibration_rows, gate.risk, gate.level)
    shown_from = math.inf if threshold.value is None else threshold.value
    rows = [row.by(threshold.score) for row in rows]
    golden_rows = [row.by(threshold.score) for row in golden_rows]
    earlier_rows = {
        digest: [row.by(threshold.score) for row in outcomes]
        for digest, outcomes in earlier_rows.items()
    }
    slices = slices_by_example(test)
    trained = trained_prompts(context, dataset)
    honesty = honesty_of(trained, test)
    served = serve(rows, shown_from)
    further = await further_scores(
        context,
        dataset,
        test,
        rows,
        served,
        by_example(champion_rows[dataset.digest], champion[dataset.digest]) if champion else None,
        people,
        say,
        asked_for,
    )
    rows = further.rows
    evidence = GateEvidence(
        candidate=manifest.name,
        incumbent=incumbent,
        rows=gate_rows(
            rows,
            shown_from,
            champion=champion[dataset.digest] if champion else None,
            base=base_rows,
            slices=slices,
        ),
        earlier={
            digest: gate_rows(outcomes, shown_from, champion=champion[digest] if champion else None)
            for digest, outcomes in earlier_rows.items()
        },
        calibration=threshold.to_dict(),
        tries=1 + tries_before(context, manifest.task_id, manifest.name, incumbent),
        golden=gate_rows(
            golden_rows,
            shown_from,
            champion=right_or_wrong(champion[GOLDEN], golden) if champion else None,
        ),
        golden_seen=golden_seen(trained, golden),
        honesty=honesty,
        match=compare_with_trainer(
            (manifest.metrics.get("training") or {}).get("probes") or (),
            heard,
            gate.engine_tolerance,
        ),
        metrics=further.evidence,
    )
    policy = GatePolicy.from_settings(gate, task_names(context, manifest.task_id))
    result = decide(policy, evidence)
    cards = {
        "adapter": make_scorecard(
            manifest.name,
            dataset.digest,
            rows,
            slices=slices,
            honesty=honesty,
            details=details_of(test, rows),
        ),
        "base": make_scorecard(manifest.base_model, dataset.digest, base_rows, slices=slices),
        **compared_cards(
            dataset.digest,
            test,
            slices,
            adapter=(manifest.name, rows),
            served=served,
            incumbent=(incumbent, champion_rows[dataset.digest]) if champion else None,
            teacher=context.settings.teacher.model,
        ),
    }
    scorecards = {name: card.to_dict() for name, card in cards.items()}
    coverage = sum(row.accepted for row in served) / len(served)
    price = Price(
        context.settings.teacher.cost_per_million_tokens,
        context.settings.engine.cost_per_million_tokens,
    )
    judgement = Judgement(
        adapter=manifest.name,
        task_id=manifest.task_id,
        dataset_digest=dataset.digest,
        threshold=threshold.value,
        coverage=coverage,
        base_score=cards["base"].mean,
        adapter_score=cards["adapter"].mean,
        teacher_score=teacher_score(test),
        served_score=sum(row.correct for row in served) / len(served),
        verdict=result.verdict,
        reasons=result.reasons + not_answered,
        scorecards=scorecards,
        gate={
            **result.to_dict(),
            "policy": policy.to_dict(),
            "evidence": evidence.to_dict(),
        },
        report=key,
        confidence=threshold.score,
        risk_coverage=curves_of(rows, threshold, gate),
        costs=costs_per_thousand(price, scorecards, coverage),
    )
    return judgement, rows


async def _base_outcomes(
    context: Context,
    base_digest: str,
    dataset: DatasetVersion,
    examples: Sequence[Example],
    answerer: Answerer,
    say: Say,
) -> list[Outcome]:
    """The base model's answers: asked once per data set and base, slow as its full prompts are."""
    key = f"reports/base/{dataset.digest[:16]}-{base_digest[:16]}-{len(examples)}.json"
    try:
        return [Outcome.from_dict(row) for row in json.loads(context.store.get(key))]
    except ObjectMissing:
        pass
    outcomes = await _replay(context, answerer, examples, say, "base model")
    require_answers(outcomes)
    context.store.put(key, json.dumps([row.to_dict() for row in outcomes]).encode())
    return outcomes


async def _incumbent(
    context: Context,
    task_id: str,
    candidate: str,
    tests: Mapping[str, Sequence[Example]],
    say: Say,
) -> tuple[dict[str, list[Served]] | None, str, dict[str, list[Outcome]]]:
    """The champion adapter as served on the same rows, its name and its own answers; None, and no
    answers, when the teacher is the champion. Raises EngineUnavailable."""
    champion = context.registry.route(task_id).champion
    if champion in (TEACHER, candidate):
        return None, TEACHER, {}
    registered = context.registry.adapter(champion)
    folder = await asyncio.to_thread(
        pull, context.store, registered.location, context.settings.gateway.adapters
    )
    manifest = read_manifest(folder)
    form = PromptFormat.from_dict(manifest.format)
    async with context.engine() as engine:
        await engine.ensure_loaded(champion, folder)
        answerer = _answerer(context, engine, champion, form, score=manifest.confidence)
        said = {
            digest: [
                row.by(manifest.confidence)
                for row in await _replay(
                    context,
                    answerer,
                    test,
                    say,
                    f"incumbent {champion}",
                    answers_drawn(manifest.confidence),
                )
            ]
            for digest, test in tests.items()
        }
    served = {digest: serve(rows, registered.threshold) for digest, rows in said.items()}
    return served, champion, said


def _answerer(
    context: Context,
    engine: Engine,
    adapter: str | None,
    form: PromptFormat,
    *,
    score: str = MEAN,
    every_score: bool = False,
    drawn: int = 0,
    heard: dict[str, Said] | None = None,
) -> Answerer:
    """The small model as the gateway asks it, without a threshold; None asks the base model.

    Args:
        heard: gets what was said, by ``prompt_key``.
    """
    small = SmallModel(engine, timeout_seconds=ANSWER_SECONDS)

    async def ask(request: Mapping[str, Any]) -> SmallAnswer:
        limit = context.settings.engine.max_answer_tokens
        answer = await small.answer(
            request,
            adapter=adapter,
            form=form,
            score=score,
            every_score=every_score,
            drawn=drawn,
            max_tokens=limit,
        )
        if heard is not None:
            complete = answer.checks.reason != CUT_OFF
            heard[prompt_key(request)] = Said(answer.text, answer.token_logprobs, complete)
        return answer

    return ask


async def _replay(
    context: Context,
    answerer: Answerer,
    examples: Sequence[Example],
    say: Say,
    what: str,
    drawn: int = 0,
) -> list[Outcome]:
    """Full batches: a question takes a place in the engine for each answer drawn beside its own."""
    return await replay(
        answerer,
        examples,
        timeout_seconds=ANSWER_SECONDS,
        concurrency=max(1, context.settings.engine.batch_size // (1 + drawn)),
        progress=progress_of(say, what),
    )
