"""Short runs for one task before the whole run, where the settings ask for them: to choose among
candidates, and to learn whether more data would help."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from flows.wiring import Context
from infra.objects.store import ObjectMissing
from trainers.base_model import BaseModel, BaseModelError, prepare_base
from trainers.executors.protocol import RunHandle, RunOutcome
from trainers.run_storage import RunStorage
from trainers.search import Trial, candidates, curve_specs, data_verdict, rungs, survivors
from trainers.spec import TrainSpec

Start = Callable[[TrainSpec, int | None], RunHandle]
"""Submit a run of the spec that pauses at a step, or goes to its end."""
ITS_OWN = frozenset({"loss_not_finite", "out_of_memory"})
"""Failures that rank or learning rate may cause; after any other a candidate may do better later."""
Wait = Callable[[RunHandle, TrainSpec], RunOutcome]


def competing(context: Context, base: BaseModel, say: Callable[[str], None]) -> list[BaseModel]:
    """The base that the engine serves, then those that the settings let compete with it.

    One that cannot be had is left out, and it is said why.
    """
    found = [base]
    for name in context.settings.training.candidate_bases:
        try:
            other = prepare_base(
                context.settings.engine.model_copy(update={"base_model": name}), say
            )
        except BaseModelError as error:
            say(f"the base model {name} does not compete: {error}")
            continue
        if other.digest not in {one.digest for one in found}:
            found.append(other)
    return found


def choose(
    context: Context,
    spec: TrainSpec,
    start: Start,
    wait: Wait,
    say: Callable[[str], None],
    bases: Sequence[BaseModel] = (),
) -> TrainSpec:
    """The spec to train to its end: the best on validation of those that the settings let compete.

    Every trial's record is kept at ``reports/trials/<spec digest>.json``, unless a trial failed for
    no fault of its own; a night that runs again reads the winner there. With one candidate nothing
    is trained here.

    Args:
        bases: further base models that compete. No engine serves them, so none of them is chosen: that
            one does better is said, kept for the next plan, and for a person to act on.
    """
    training = context.settings.training
    entrants = candidates(
        spec,
        training.candidate_ranks,
        training.candidate_learning_rates,
        training.candidates,
        [(base.name, base.digest) for base in bases],
    )
    if len(entrants) == 1:
        return spec
    key = f"reports/trials/{_race(entrants)}.json"
    found = {entrant.digest: entrant for entrant in entrants}
    winner = kept_json(context, key).get("winner")
    if winner in found:
        return found[winner]
    served = {
        digest for digest, entrant in found.items() if entrant.base_digest == spec.base_digest
    }
    per_byte = len(served) < len(found)
    records: dict[str, Trial] = {}
    settled = True
    left, levels = dict(found), rungs(len(entrants), spec.steps)
    for level, step in enumerate(levels):
        handles = {digest: start(entrant, step) for digest, entrant in left.items()}
        outcomes = {digest: wait(handle, left[digest]) for digest, handle in handles.items()}
        settled &= all(o.state == "done" or o.failure in ITS_OWN for o in outcomes.values())
        losses = {digest: _loss(outcome, per_byte) for digest, outcome in outcomes.items()}
        on = survivors(losses, final=level == len(levels) - 1, served=served)
        for digest, entrant in left.items():
            records[digest] = _record(entrant, step, losses[digest], outcomes[digest], digest in on)
        left = {digest: left[digest] for digest in on}
        if not left:
            break
    # All failed: the run as the settings have it says why.
    best = next((entrant for digest, entrant in left.items() if digest in served), spec)
    records = _crowned(records, best, served)
    verdict = _base_verdict(records, best) if per_byte else None
    if settled:
        text = json.dumps(_report(best, records, verdict), indent=1, sort_keys=True)
        context.store.put(key, text.encode())
        if verdict is not None:
            context.store.put(_bases_key(spec.task_id), json.dumps({"verdict": verdict}).encode())
        for digest in found:
            if digest != best.digest:
                RunStorage.of(context.store, digest).clear()
    say(
        f"{len(entrants)} candidates for {spec.task_id}: rank {best.lora.rank}, learning rate "
        f"{best.learning_rate:g} is best on validation"
    )
    if verdict is not None:
        say(f"{spec.task_id}: {verdict}")
    return best


def _race(entrants: Sequence[TrainSpec]) -> str:
    """Names who competes: the settings' own spec, and the other bases where there are any."""
    others = sorted({entrant.base_digest for entrant in entrants} - {entrants[0].base_digest})
    if not others:
        return entrants[0].digest
    return hashlib.sha256("\n".join([entrants[0].digest, *others]).encode()).hexdigest()


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


def trial_verdicts(context: Context, task_id: str) -> str | None:
    """What the task's last trials said: of more data, and of other base models."""
    keys = [_curve_key(task_id)]
    if context.settings.training.candidate_bases:
        keys.append(_bases_key(task_id))
    said = [kept_json(context, key).get("verdict") for key in keys]
    return "; ".join(one for one in said if one) or None


def _bases_key(task_id: str) -> str:
    return f"reports/bases/{task_id}.json"


def _curve_key(task_id: str) -> str:
    return f"reports/curves/{task_id}.json"


def kept_json(context: Context, key: str) -> dict[str, Any]:
    """A JSON object of the store's; empty where there is none."""
    try:
        value = json.loads(context.store.get(key))
    except (ObjectMissing, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _loss(outcome: RunOutcome, per_byte: bool = False) -> float | None:
    """Nats per answer token, or per byte of the answers: tokens of two bases are of different length."""
    if outcome.state != "done" or outcome.result is None:
        return None
    loss, size = outcome.result.validation_loss, outcome.result.answer_bytes_per_token
    if not per_byte or loss is None:
        return loss
    return loss / size if size else None


def _record(
    spec: TrainSpec, step: int, loss: float | None, outcome: RunOutcome, goes_on: bool
) -> Trial:
    state = "goes on" if goes_on else "dropped"
    if outcome.state != "done":
        state = f"failed: {outcome.failure or outcome.state}"
    return Trial(
        spec.digest, spec.lora.rank, spec.learning_rate, step, loss, state, spec.base_model
    )


def _crowned(
    records: Mapping[str, Trial], best: TrainSpec, served: Collection[str]
) -> dict[str, Trial]:
    """With the winner named, and those that beat it on a base that no engine serves."""
    won = records.get(best.digest)
    if won is None or won.loss is None:
        return dict(records)
    crowned = dict(records)
    for digest, trial in records.items():
        if digest not in served and trial.outcome == "goes on":
            crowned[digest] = replace(trial, outcome="better, not served")
    return {**crowned, best.digest: replace(won, outcome="won")}


def _base_verdict(records: Mapping[str, Trial], best: TrainSpec) -> str | None:
    """Whether another base model did better than the one that the engine serves."""
    own = records[best.digest]
    others = [trial for trial in records.values() if trial.outcome == "better, not served"]
    if own.loss is None:
        return None
    if not others:
        return f"no other base model did better than {best.base_model}"
    other = others[0]
    return (
        f"the base model {other.base} would do better ({other.loss:.4f} against {own.loss:.4f} nats a "
        f"byte after {other.step} steps), but the engine serves {best.base_model}: set "
        "engine.base_model to have adapters of it"
    )


def _report(
    best: TrainSpec, records: Mapping[str, Trial], verdict: str | None
) -> dict[str, object]:
    return {
        "winner": best.digest,
        "bases": verdict,
        "trials": [asdict(trial) for trial in records.values()],
    }
