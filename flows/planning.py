"""Which tasks a night trains, from what earlier nights measured; and what became of the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from flows.retraining import due_tasks
from flows.trials import kept_json, trial_verdicts
from flows.wiring import Context
from infra.artifacts.base import fingerprint
from infra.artifacts.base_folder import local_base_folder
from infra.artifacts.manifest import ArtifactError
from infra.calls.record import utc_now
from infra.database.events import list_events
from infra.objects.store import ObjectStoreError
from infra.prompting.template import PromptFormat
from serving.registry.errors import UnknownDataset
from serving.registry.records import Scorecard
from trainers.data_sets.freeze import EmptyDataset, freeze
from trainers.data_sets.versions import DatasetVersion, find_dataset, read_split
from trainers.defaults import MAX_SEQUENCE_TOKENS
from trainers.discover.discover import TaskSummary
from trainers.encoding import encode, load_tokenizer
from trainers.failures import TrainingError, classify
from trainers.packing import lower_bound
from trainers.plan import BaseScore, Measured, Plan, plan

RELEASED = "adapter.released"
"""The event that ends an adapter's night; until it is there, the night is not done with it."""
MAX_RELEASED = 10_000
DRILL_STEPS = 40
"""A deliberately bad adapter needs no more training than it takes to keep the answers' format."""
LAST_NIGHT = "reports/nights/last.json"
COUNTED_EXAMPLES = 500
"""Examples whose tokens are counted for the estimate."""
RECENT_ADAPTERS = 5
ENOUGH_BASE_ROWS = 30
"""Held-out calls that the base model alone answered before its score is believed."""


def plan_night(
    context: Context,
    tasks: Sequence[TaskSummary],
    *,
    only: str | None = None,
    deadline: datetime | None = None,
    drill: bool = False,
    start: datetime | None = None,
) -> Plan:
    """Freeze a data set per trainable task and choose what to train.

    Args:
        only: the id of one task; the others are not looked at.
        deadline: when the last run must be done; None: the end of the configured night.
        start: when the first run can begin; None: now.
        drill: plan short runs, also on examples that an adapter was trained on already.
    """
    datasets: dict[str, DatasetVersion] = {}
    chosen = [task for task in tasks if only in (None, task.id)]
    for task in chosen:
        if task.state == "observed":
            continue
        recorded = context.registry.datasets(task.id) if drill else []
        if recorded:
            # A drill has nothing to learn from newer calls, and the base is judged on these.
            datasets[task.id] = find_dataset(context.store, recorded[-1].location)
            continue
        try:
            version = freeze(context.store, context.database, context.settings, task.id, utc_now())
        except EmptyDataset:
            continue
        datasets[task.id] = version
    measured = _measured(context, datasets)
    if drill:
        measured = replace(measured, trained=frozenset())
    made = plan(chosen, datasets, context.settings, start or utc_now(), measured, deadline=deadline)
    if not drill:
        return made
    short = tuple(
        replace(run, steps=min(run.steps, DRILL_STEPS), reason="a drill, on wrong answers")
        for run in made.runs
    )
    return replace(made, runs=short)


@dataclass(frozen=True)
class RunFact:
    """One planned run against what happened; seconds."""

    task: str
    planned_seconds: float
    actual_seconds: float | None
    steps: int
    state: str
    """``trained``, ``cancelled`` by the night's end, or how its run, its judging or its release failed."""
    why: str = ""
    """The failure's own words."""


CUT_OFF = "cancelled"


def told_of(facts: Sequence[RunFact], forgot: str = "") -> str:
    """What a night says of itself at its end: every task that it could not bring to one, and why.

    Empty where nothing failed. What the night's end cut off is no failure: it comes first tomorrow.

    Args:
        forgot: what ``remember_night`` returned.
    """
    failed = [
        f"{fact.task} ({fact.state}: {fact.why[:200]})"
        for fact in facts
        if fact.state not in ("trained", CUT_OFF)
    ]
    ended = f"not brought to an end: {', '.join(failed)}; see the task runs" if failed else ""
    return "; ".join(filter(None, [ended, forgot]))


def remember_night(context: Context, made: Plan, facts: Sequence[RunFact]) -> str:
    """Keep what did not fit or was cut off, for the next plan, and how long the rest took.

    Returns why nothing was kept, where the store would not have it: no reason to forget what is to be
    told of the runs themselves.
    """
    cut_off = [fact.task for fact in facts if fact.state == CUT_OFF]
    value = {"deferred": [*made.deferred, *cut_off], "runs": [asdict(fact) for fact in facts]}
    try:
        context.store.put(LAST_NIGHT, json.dumps(value, sort_keys=True, indent=1).encode())
    except ObjectStoreError as error:
        return f"what comes first tomorrow is not kept ({classify(error).state}: {error})"
    return ""


def plan_rows(made: Plan) -> list[dict[str, Any]]:
    """The plan as a table: runs in the order of their start, then what is not trained, and why."""
    rows: list[dict[str, Any]] = [
        {
            "task": run.task_id,
            "steps": run.steps,
            "starts": round(run.starts_after_seconds, 1),
            "seconds": round(run.estimated_seconds, 1),
            "saving": round(run.saving, 4),
            "why": run.reason,
        }
        for run in made.runs
    ]
    return rows + [
        {"task": task_id, "steps": 0, "starts": None, "seconds": 0.0, "saving": None, "why": why}
        for task_id, why in made.skipped
    ]


def plan_totals(made: Plan, workers: int) -> dict[str, Any]:
    """When the last run should end, beside the earliest that any layout could; seconds."""
    seconds = [run.estimated_seconds for run in made.runs]
    return {
        "deadline": made.deadline.isoformat() if made.deadline else None,
        "workers": workers,
        "ends_after_seconds": round(made.estimated_seconds, 1),
        "no_layout_ends_before_seconds": round(lower_bound(seconds, workers), 1),
        "deferred": list(made.deferred),
    }


def _measured(context: Context, datasets: Mapping[str, DatasetVersion]) -> Measured:
    """What earlier nights taught: speed, coverage by task and the data sets they are done with.

    An adapter that a night was killed over, registered or not, does not count as done: the next
    night finds it trained and judged, and brings it to its end.
    """
    adapters = context.registry.adapters()
    with context.database.read() as connection:
        ends = list_events(connection, what=RELEASED, limit=MAX_RELEASED, newest_first=True)
    released = {event.subject for event in ends}
    coverage: dict[str, float] = {}
    base_scores: dict[str, BaseScore] = {}
    base = _present_base(context)
    for adapter in adapters:
        for scorecard in context.registry.scorecards(adapter.name)[:1]:
            numbers = scorecard.gate.get("numbers", {})
            if numbers.get("coverage") is not None:
                coverage[adapter.task_id] = float(numbers["coverage"])
            enough = numbers.get("base_rows", 0) >= ENOUGH_BASE_ROWS and "base_score" in numbers
            if enough and adapter.manifest.get("base_digest") == base:
                base_scores[adapter.task_id] = _base_score(context, scorecard)
    speeds = [
        float(value)
        for adapter in adapters
        if (value := _training(adapter.manifest).get("tokens_per_second"))
    ][-RECENT_ADAPTERS:]
    drills = {
        adapter.name for adapter in adapters if adapter.manifest["spec"].get("shuffle_answers")
    }
    return Measured(
        tokens_per_second=sum(speeds) / len(speeds) if speeds else None,
        tokens_per_example=_token_means(context, datasets) if speeds else {},
        coverage=coverage,
        trained=frozenset(a.dataset_digest for a in adapters if a.name in released - drills),
        base_scores=base_scores,
        curves={
            task_id: said for task_id in datasets if (said := trial_verdicts(context, task_id))
        },
        waiting=frozenset(kept_json(context, LAST_NIGHT).get("deferred", ())),
        due=due_tasks(context, ends),
    )


def _present_base(context: Context) -> str | None:
    """Fingerprint of the configured base model; None where its files are not here yet."""
    try:
        return fingerprint(local_base_folder(context.settings.engine))
    except ArtifactError:
        return None


def _base_score(context: Context, scorecard: Scorecard) -> BaseScore:
    try:
        judged = context.registry.dataset(scorecard.dataset_digest).manifest
    except UnknownDataset:
        judged = {}
    return BaseScore(
        float(scorecard.gate["numbers"]["base_score"]),
        (utc_now() - scorecard.created).total_seconds(),
        int(judged.get("counts", {}).get("train", 0)),
    )


def _training(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    found = manifest.get("metrics", {}).get("training", {})
    return found if isinstance(found, Mapping) else {}


def _token_means(context: Context, datasets: Mapping[str, DatasetVersion]) -> dict[str, float]:
    """Data set digest to the mean tokens of its training examples, counted on the newest of them."""
    try:
        tokenizer = load_tokenizer(local_base_folder(context.settings.engine))
    except (ArtifactError, TrainingError):
        return {}  # not fetched yet, or of no use, as its runs will say: the first estimate has to do
    means: dict[str, float] = {}
    for dataset in datasets.values():
        newest = read_split(context.store, dataset, "train")[-COUNTED_EXAMPLES:]
        rows = [{"request": example.request, "answer": example.answer} for example in newest]
        form = PromptFormat.from_dict(dataset.manifest["format"])
        longest = context.settings.training.max_sequence_tokens or MAX_SEQUENCE_TOKENS
        try:
            found = encode(rows, tokenizer, form, longest).examples
        except TrainingError:
            continue
        if found:
            means[dataset.digest] = sum(map(len, found)) / len(found)
    return means
