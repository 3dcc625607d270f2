"""Short runs for one task before the whole run, where the settings ask for them: to choose among
candidates, and to learn whether more data would help."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from flows.wiring import Context
from infra.objects.store import ObjectMissing
from trainers.executors.protocol import RunHandle, RunOutcome
from trainers.run_storage import RunStorage
from trainers.search import Trial, candidates, curve_specs, data_verdict, rungs, survivors
from trainers.spec import TrainSpec

Start = Callable[[TrainSpec, int | None], RunHandle]
"""Submit a run of the spec that pauses at a step, or goes to its end."""
ITS_OWN = frozenset({"loss_not_finite", "out_of_memory"})
"""Failures that rank or learning rate may cause; after any other a candidate may do better later."""
Wait = Callable[[RunHandle, TrainSpec], RunOutcome]


def choose(
    context: Context, spec: TrainSpec, start: Start, wait: Wait, say: Callable[[str], None]
) -> TrainSpec:
    """The spec to train to its end: the best on validation of those that the settings let compete.

    Every trial's record is kept at ``reports/trials/<spec digest>.json``, unless a trial failed for
    no fault of its own; a night that runs again reads the winner there. With one candidate nothing
    is trained here.
    """
    training = context.settings.training
    entrants = candidates(
        spec, training.candidate_ranks, training.candidate_learning_rates, training.candidates
    )
    if len(entrants) == 1:
        return spec
    key = f"reports/trials/{spec.digest}.json"
    found = {entrant.digest: entrant for entrant in entrants}
    winner = kept_json(context, key).get("winner")
    if winner in found:
        return found[winner]
    records: dict[str, Trial] = {}
    settled = True
    left, levels = dict(found), rungs(len(entrants), spec.steps)
    for level, step in enumerate(levels):
        handles = {digest: start(entrant, step) for digest, entrant in left.items()}
        outcomes = {digest: wait(handle, left[digest]) for digest, handle in handles.items()}
        settled &= all(o.state == "done" or o.failure in ITS_OWN for o in outcomes.values())
        losses = {digest: _loss(outcome) for digest, outcome in outcomes.items()}
        on = survivors(losses, final=level == len(levels) - 1)
        for digest, entrant in left.items():
            records[digest] = _record(entrant, step, losses[digest], outcomes[digest], digest in on)
        left = {digest: left[digest] for digest in on}
        if not left:
            break
    # All failed: the run as the settings have it says why.
    best = next(iter(left.values()), spec)
    records = _crowned(records, best)
    if settled:
        text = json.dumps(_report(best, records), indent=1, sort_keys=True)
        context.store.put(key, text.encode())
        for digest in found:
            if digest != best.digest:
                RunStorage.of(context.store, digest).clear()
    say(
        f"{len(entrants)} candidates for {spec.task_id}: rank {best.lora.rank}, learning rate "
        f"{best.learning_rate:g} is best on validation"
    )
    return best


def learn_curve(
    context: Context, spec: TrainSpec, start: Start, wait: Wait, say: Callable[[str], None]
) -> None:
    """Find out by two short runs whether more data would help, where the settings ask for it.

    Kept at ``reports/curves/<task>.json`` for the next plan; made once per data set, unless a run failed.
    """
    if not context.settings.training.learning_curve or spec.shuffle_answers:
        return
    if kept_json(context, _curve_key(spec.task_id)).get("dataset") == spec.dataset_digest:
        return
    specs = curve_specs(spec)
    handles = {share: start(short, None) for share, short in specs.items()}
    outcomes = {share: wait(handle, specs[share]) for share, handle in handles.items()}
    losses = {share: _loss(outcome) for share, outcome in outcomes.items()}
    verdict = data_verdict(losses)
    value = {
        "dataset": spec.dataset_digest,
        "verdict": verdict,
        "runs": [
            {"share": share, "spec_digest": short.digest, "validation_loss": losses[share]}
            for share, short in specs.items()
        ],
    }
    if verdict is not None:
        text = json.dumps(value, indent=1, sort_keys=True)
        context.store.put(_curve_key(spec.task_id), text.encode())
    for short in specs.values():
        RunStorage.of(context.store, short.digest).clear()
    say(f"{spec.task_id}: {verdict or 'no learning curve, since a short run failed'}")


def curve_verdict(context: Context, task_id: str) -> str | None:
    """What the task's last learning curve said of more data."""
    return kept_json(context, _curve_key(task_id)).get("verdict")


def _curve_key(task_id: str) -> str:
    return f"reports/curves/{task_id}.json"


def kept_json(context: Context, key: str) -> dict[str, Any]:
    """A JSON object of the store's; empty where there is none."""
    try:
        value = json.loads(context.store.get(key))
    except (ObjectMissing, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _loss(outcome: RunOutcome) -> float | None:
    return outcome.result.validation_loss if outcome.state == "done" and outcome.result else None


def _record(
    spec: TrainSpec, step: int, loss: float | None, outcome: RunOutcome, goes_on: bool
) -> Trial:
    state = "goes on" if goes_on else "dropped"
    if outcome.state != "done":
        state = f"failed: {outcome.failure or outcome.state}"
    return Trial(spec.digest, spec.lora.rank, spec.learning_rate, step, loss, state)


def _crowned(records: Mapping[str, Trial], best: TrainSpec) -> dict[str, Trial]:
    won = records.get(best.digest)
    if won is None or won.outcome.startswith("failed"):
        return dict(records)
    return {**records, best.digest: replace(won, outcome="won")}


def _report(best: TrainSpec, records: Mapping[str, Trial]) -> dict[str, object]:
    return {"winner": best.digest, "trials": [asdict(trial) for trial in records.values()]}
