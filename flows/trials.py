"""Try a few settings for one task before the whole run, where the settings ask for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from flows.wiring import Context
from trainers.executors.protocol import RunHandle, RunOutcome
from trainers.run_storage import RunStorage
from trainers.search import Trial, candidates, rungs, survivors
from trainers.spec import TrainSpec

Start = Callable[[TrainSpec, int | None], RunHandle]
"""Submit a run of the spec that pauses at a step, or goes to its end."""
Wait = Callable[[RunHandle, TrainSpec], RunOutcome]


def choose(
    context: Context, spec: TrainSpec, start: Start, wait: Wait, say: Callable[[str], None]
) -> TrainSpec:
    """The spec to train to its end: the best on validation of those that the settings let compete.

    Every trial's record is kept at ``reports/trials/<spec digest>.json``; a night that runs again
    reads the winner there. With one candidate nothing is trained here.
    """
    training = context.settings.training
    entrants = candidates(
        spec, training.candidate_ranks, training.candidate_learning_rates, training.candidates
    )
    if len(entrants) == 1:
        return spec
    key = f"reports/trials/{spec.digest}.json"
    found = {entrant.digest: entrant for entrant in entrants}
    winner = _winner(context, key)
    if winner in found:
        return found[winner]
    records: dict[str, Trial] = {}
    left, levels = dict(found), rungs(len(entrants), spec.steps)
    for level, step in enumerate(levels):
        handles = {digest: start(entrant, step) for digest, entrant in left.items()}
        outcomes = {digest: wait(handle, left[digest]) for digest, handle in handles.items()}
        losses = {
            digest: o.result.validation_loss if o.state == "done" and o.result else None
            for digest, o in outcomes.items()
        }
        on = survivors(losses, final=level == len(levels) - 1)
        for digest, entrant in left.items():
            records[digest] = _record(entrant, step, losses[digest], outcomes[digest], digest in on)
        left = {digest: left[digest] for digest in on}
        if not left:
            break
    # All failed: the run as the settings have it says why.
    best = next(iter(left.values()), spec)
    records = _crowned(records, best)
    context.store.put(key, json.dumps(_report(best, records), indent=1, sort_keys=True).encode())
    for digest in found:
        if digest != best.digest:
            RunStorage.of(context.store, digest).clear()
    say(
        f"{len(entrants)} candidates for {spec.task_id}: rank {best.lora.rank}, learning rate "
        f"{best.learning_rate:g} is best on validation"
    )
    return best


def _winner(context: Context, key: str) -> str | None:
    from infra.objects.store import ObjectMissing

    try:
        return str(json.loads(context.store.get(key))["winner"])
    except (ObjectMissing, ValueError, KeyError):
        return None


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
    return {**records, best.digest: Trial(**{**asdict(won), "outcome": "won"})}


def _report(best: TrainSpec, records: Mapping[str, Trial]) -> dict[str, object]:
    return {"winner": best.digest, "trials": [asdict(trial) for trial in records.values()]}
