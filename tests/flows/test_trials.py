"""Candidates of a task compete on a real executor; the winner trains on, every trial is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.trials import choose, competing, learn_curve, trial_verdicts
from flows.wiring import Context, open_context
from infra.database.open import Database
from infra.settings.model import Settings
from tests.tiny_model import make_tiny_model, tool_examples
from tests.tiny_run import tiny_spec
from trainers.base_model import prepare_base
from trainers.executors.local import LocalExecutor
from trainers.executors.protocol import RunHandle, RunOutcome, TrainJob
from trainers.run_folder import RunFolder, RunRequest, TrainResult
from trainers.search import data_verdict
from trainers.spec import TrainSpec


@pytest.fixture
def context(settings: Settings, database: Database) -> Iterator[Context]:
    training = {"candidates": 2, "candidate_learning_rates": (0.01,)}
    changed = settings.model_copy(
        update={"training": settings.training.model_copy(update=training)}
    )
    with open_context(changed) as opened:
        yield opened


def test_two_short_runs_say_whether_more_data_would_help(context: Context, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    spec, examples = tiny_spec(base, steps=16), tool_examples(48)
    executor, begun = LocalExecutor(2), dict[float, RunFolder]()

    def start(short: TrainSpec, pause_step: int | None) -> RunHandle:
        request = RunRequest(base_folder=base, backend="peft")
        folder = context.settings.training.runs / short.digest[:16]
        run = RunFolder.create(folder, short, request, examples[:40], examples[40:])
        begun[short.data_share] = run
        return executor.submit(TrainJob(run.path))

    def wait(handle: RunHandle, short: TrainSpec) -> RunOutcome:
        return handle.wait(200)

    said: list[str] = []
    try:
        learn_curve(context, spec, start, wait, said.append)
        assert begun == {}, "off by default"
        training = context.settings.training.model_copy(update={"learning_curve": True})
        asked = replace(
            context, settings=context.settings.model_copy(update={"training": training})
        )
        learn_curve(asked, spec, start, wait, said.append)
        results = {share: run.result() for share, run in begun.items()}
        assert {s: r.examples for s, r in results.items() if r} == {0.1: 4, 0.3: 12}
        begun.clear()
        learn_curve(asked, spec, start, wait, said.append)
        assert begun == {}, "made once per data set"
    finally:
        executor.close()
    verdict = trial_verdicts(context, spec.task_id)
    losses = {share: result.validation_loss for share, result in results.items() if result}
    assert verdict == data_verdict(losses)
    assert said == [f"{spec.task_id}: {verdict}"]


def test_the_better_learning_rate_wins_and_is_found_again(context: Context, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    spec, examples = tiny_spec(base, steps=16), tool_examples(48)
    executor, begun = LocalExecutor(2), []

    def start(candidate: TrainSpec, pause_step: int | None) -> RunHandle:
        begun.append((candidate.learning_rate, pause_step))
        request = RunRequest(base_folder=base, backend="peft", pause_step=pause_step)
        folder = context.settings.training.runs / candidate.digest[:16]
        run = RunFolder.create(folder, candidate, request, examples[:40], examples[40:])
        return executor.submit(TrainJob(run.path))

    def wait(handle: RunHandle, candidate: TrainSpec) -> RunOutcome:
        return handle.wait(200)

    said: list[Any] = []
    try:
        poor = spec.model_copy(update={"learning_rate": 1e-6})
        assert choose(context, poor, start, wait, said.append) == spec
        assert begun == [(1e-6, 8), (0.01, 8)]
        assert choose(context, poor, start, wait, said.append) == spec
        assert len(begun) == 2, "what was tried is not tried again"
    finally:
        executor.close()
    kept = json.loads(context.store.get(f"reports/trials/{poor.digest}.json"))
    assert kept["winner"] == spec.digest
    assert {(t["learning_rate"], t["outcome"]) for t in kept["trials"]} == {
        (1e-6, "dropped"),
        (0.01, "won"),
    }
    assert all(trial["loss"] > 0 for trial in kept["trials"])


def ended(loss: float, bytes_per_token: float) -> RunOutcome:
    """How a trial that reached this validation loss ends."""
    result = TrainResult(
        backend="peft",
        steps=8,
        kept_step=8,
        loss=loss,
        validation_loss=loss,
        answer_bytes_per_token=bytes_per_token,
        seconds=1,
        examples=40,
        too_long=0,
        finished=0,
    )
    return RunOutcome("done", 1, result=result)


def test_a_better_base_that_no_engine_serves_is_named_and_not_chosen(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    own = make_tiny_model(tmp_path / "own")
    other = make_tiny_model(tmp_path / "other", seed=1)
    named = (str(other), str(own), "nowhere/to-be-found", str(tmp_path / "missing"))
    changed = settings.model_copy(
        update={
            "engine": settings.engine.model_copy(update={"base_model": str(own)}),
            "training": settings.training.model_copy(update={"candidate_bases": named}),
        }
    )
    said: list[str] = []
    with open_context(changed) as context:
        bases = competing(context, prepare_base(context.settings.engine), said.append)
        assert [base.name for base in bases] == [str(own), str(other)]
        assert sum("does not compete" in line for line in said) == 2
        spec = tiny_spec(own, steps=16, base_model=str(own))
        # More nats a token, yet fewer a byte: its tokens are longer.
        outcomes = {bases[0].digest: ended(0.5, 2.0), bases[1].digest: ended(0.6, 4.0)}
        begun: list[str] = []

        def start(trial: TrainSpec, pause_step: int | None) -> Any:
            begun.append(trial.base_digest)

        def wait(handle: RunHandle, trial: TrainSpec) -> RunOutcome:
            return outcomes[trial.base_digest]

        assert choose(context, spec, start, wait, said.append, bases[1:]) == spec
        assert begun == [bases[0].digest, bases[1].digest]
        verdict = trial_verdicts(context, spec.task_id)
        assert verdict is not None and said[-1] == f"{spec.task_id}: {verdict}"
        assert "would do better (0.1500 against 0.2500 nats a byte after 8 steps)" in verdict
        assert f"the engine serves {own}" in verdict
        assert choose(context, spec, start, wait, said.append, bases[1:]) == spec
        assert len(begun) == 2, "what was tried is not tried again"
        outcomes[bases[1].digest] = ended(2.0, 4.0)
        choose(context, spec.model_copy(update={"seed": 8}), start, wait, said.append, bases[1:])
        assert "no other base model did better" in (trial_verdicts(context, spec.task_id) or "")
