"""From logs to adapters: the steps of a night as plain functions. No Prefect here.

Each step is keyed by content (object and etag, data set digest, spec digest), so a night that was
killed and runs again finds what is done and does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from flows.holding import Busy, hold
from flows.retraining import due_tasks
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import list_events
from infra.objects.store import ObjectStoreError
from trainers.artifact import package
from trainers.base_model import BaseModel, prepare_base
from trainers.data_sets.freeze import EmptyDataset, freeze
from trainers.data_sets.splits import SplitName
from trainers.data_sets.versions import DatasetVersion, find_dataset, read_split
from trainers.discover.discover import TaskSummary, discover
from trainers.executors.protocol import Executor, RunHandle, TrainJob
from trainers.importing.importing import ImportReport, import_logs
from trainers.importing.rerun import RerunReport, rerun
from trainers.ingest.ingest import IngestReport, ingest
from trainers.plan import Measured, Plan, plan
from trainers.run_folder import RunFolder, RunRequest, begun_before
from trainers.spec import LoraSpec, TrainSpec

Say = Callable[[str], None]
POLL_SECONDS = 10.0
INGEST = "ingest"
IMPORT = "import"
INGEST_WAIT_SECONDS = 600.0
RELEASED = "adapter.released"
"""The event that ends an adapter's night; until it is there, the night is not done with it."""
MAX_RELEASED = 10_000
DRILL_STEPS = 40
"""A deliberately bad adapter needs no more training than it takes to keep the answers' format."""
DEADLINE_GRACE = timedelta(minutes=10)
"""How long a run may take to stop cleanly after the night's end before it is cancelled."""


@dataclass(frozen=True)
class Trained:
    """A packaged adapter on the training workers' storage, not yet judged or published."""

    name: str
    task_id: str
    digest: str
    folder: Path
    dataset_digest: str
    spec_digest: str


class TrainingFailed(Exception):
    """A run ended without an adapter; the message is the run's own."""


def ingest_logs(context: Context, say: Say = lambda _: None) -> IngestReport:
    """Take in what no run has taken in yet; waits for another ingest that is at it."""
    with hold(context.database, INGEST, context.holder, wait_seconds=INGEST_WAIT_SECONDS):
        import_sources(context, say)
        # Whoever has the lease takes over the claims of one that was killed.
        return ingest(
            context.store, context.database, context.settings, holder=INGEST, progress=_seldom(say)
        )


def import_sources(context: Context, say: Say = lambda _: None) -> None:
    """Take in what is new in ``ingest.sources``. One that cannot be reached stops no other."""
    for source in context.settings.ingest.sources:
        try:
            report = import_foreign(
                context, source.format, source.location, tenant=source.tenant, say=_seldom(say)
            )
        except (Busy, ObjectStoreError) as error:
            # An import by hand may be at it for long: neither it nor a store holds up a night.
            say(f"{source.location} could not be read, and is tried again next time: {error}")
            continue
        say(
            f"{source.location}: {report.stored} records of {report.objects} new objects, "
            f"{report.quarantined.total()} rows in quarantine, {report.failed} objects failed"
        )


def import_foreign(
    context: Context,
    format_name: str,
    location: str,
    *,
    tenant: str = "default",
    dry_run: bool = False,
    say: Say = lambda _: None,
) -> ImportReport:
    """Another system's logs into our own log; waits for another import that is at it."""
    with hold(context.database, IMPORT, context.holder, wait_seconds=INGEST_WAIT_SECONDS):
        return import_logs(
            context.store,
            context.database,
            context.settings,
            format_name,
            location,
            tenant=tenant,
            dry_run=dry_run,
            progress=say,
        )


def rerun_quarantine(context: Context, wanted: Sequence[str] = ()) -> RerunReport:
    """Read the rows in quarantine again; not while an import or an ingest writes there."""
    with (
        hold(context.database, INGEST, context.holder, wait_seconds=INGEST_WAIT_SECONDS),
        hold(context.database, IMPORT, context.holder, wait_seconds=INGEST_WAIT_SECONDS),
    ):
        return rerun(context.store, context.settings, wanted)


def discover_tasks(context: Context) -> list[TaskSummary]:
    return discover(context.store, context.database, context.settings, utc_now())


def plan_night(
    context: Context,
    tasks: Sequence[TaskSummary],
    *,
    only: str | None = None,
    deadline: datetime | None = None,
    drill: bool = False,
) -> Plan:
    """Freeze a data set per trainable task and choose what to train.

    Args:
        only: the id of one task; the others are not looked at.
        deadline: when the last run must be done; None: the end of the configured night.
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
    measured = _measured(context)
    if drill:
        measured = replace(measured, trained=frozenset())
    made = plan(chosen, datasets, context.settings, utc_now(), measured, deadline=deadline)
    if not drill:
        return made
    short = tuple(
        replace(run, steps=min(run.steps, DRILL_STEPS), reason="a drill, on wrong answers")
        for run in made.runs
    )
    return replace(made, runs=short)


def dataset_of(context: Context, digest: str) -> DatasetVersion:
    return find_dataset(context.store, context.registry.dataset(digest).location)


def train_spec(
    context: Context,
    base: BaseModel,
    dataset: DatasetVersion,
    steps: int,
    *,
    shuffle_answers: bool = False,
) -> TrainSpec:
    """What the settings and the data set make of one run.

    A run that an earlier night began on the same examples is gone on with, whatever number of steps
    fits into what is left of this one: its deadline ends it in time.
    """
    training = context.settings.training
    wanted = TrainSpec(
        task_id=dataset.task_id,
        base_model=base.name,
        base_digest=base.digest,
        dataset_digest=dataset.digest,
        lora=LoraSpec(
            rank=training.rank, alpha=2 * training.rank, last_layers=training.last_layers
        ),
        format=dict(dataset.manifest["format"]),
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        steps=steps,
        max_sequence_tokens=training.max_sequence_tokens,
        checkpoint_steps=training.checkpoint_steps,
        seed=training.seed,
        shuffle_answers=shuffle_answers,
    )
    return begun_before(training.runs, wanted) or wanted


def train(
    context: Context,
    executor: Executor,
    spec: TrainSpec,
    dataset: DatasetVersion,
    *,
    deadline: datetime | None = None,
    say: Say = lambda _: None,
) -> Trained:
    """Train and package one adapter; a run that was finished before is found again.

    Raises:
        TrainingFailed: the run failed after its retries, or was cancelled.
    """
    training = context.settings.training
    base = prepare_base(context.settings.engine, say)
    folder = RunFolder.create(
        training.runs / spec.digest[:16],
        spec,
        RunRequest(
            base_folder=base.folder,
            backend=training.backend,
            deadline=deadline.timestamp() if deadline else None,
            allow_cpu=training.gpus_per_run == 0,
        ),
        _rows(context, dataset, "train"),
        _rows(context, dataset, "validation"),
    )
    handle = executor.submit(
        TrainJob(
            folder.path,
            cpus=training.cpus_per_run,
            gpus=training.gpus_per_run,
            max_retries=training.max_retries,
        )
    )
    _await(handle, spec, deadline, say)
    packaged = package(folder.path)
    return Trained(
        packaged.name,
        spec.task_id,
        packaged.digest,
        packaged.folder,
        spec.dataset_digest,
        spec.digest,
    )


def _seldom(say: Say) -> Say:
    """Pass on a line at most every ``POLL_SECONDS``: a day has thousands of log objects."""
    last = time.monotonic()

    def pass_on(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= POLL_SECONDS:
            last = time.monotonic()
            say(line)

    return pass_on


def _rows(
    context: Context, dataset: DatasetVersion, split: SplitName
) -> list[Mapping[str, object]]:
    return [
        {"request": example.request, "answer": example.answer}
        for example in read_split(context.store, dataset, split)
    ]


def _await(handle: RunHandle, spec: TrainSpec, deadline: datetime | None, say: Say) -> None:
    """Wait for the run, saying how far it is; a run that ignores its deadline is cancelled."""
    last_step = -1
    while True:
        try:
            outcome = handle.wait(POLL_SECONDS)
            break
        except TimeoutError:
            progress = handle.progress()
            if progress.step != last_step:
                last_step = progress.step
                left = progress.seconds_left
                say(
                    f"training {spec.task_id}: step {progress.step} of {progress.steps}"
                    + (f", loss {progress.loss:.3f}" if progress.loss is not None else "")
                    + (f", about {left:.0f} s left" if left is not None else "")
                )
            if deadline is not None and utc_now() > deadline + DEADLINE_GRACE:
                handle.cancel()
    if outcome.state != "done":
        raise TrainingFailed(f"training {spec.task_id} ended {outcome.state}: {outcome.error}")


def _measured(context: Context) -> Measured:
    """What earlier nights taught: coverage by task and the data sets they are done with.

    An adapter that a night was killed over, registered or not, does not count as done: the next
    night finds it trained and judged, and brings it to its end.
    """
    adapters = context.registry.adapters()
    with context.database.read() as connection:
        ends = list_events(connection, what=RELEASED, limit=MAX_RELEASED, newest_first=True)
    released = {event.subject for event in ends}
    coverage: dict[str, float] = {}
    for adapter in adapters:
        for scorecard in context.registry.scorecards(adapter.name)[:1]:
            found = scorecard.gate.get("numbers", {}).get("coverage")
            if found is not None:
                coverage[adapter.task_id] = float(found)
    seconds = [
        value
        for adapter in adapters
        if (value := adapter.manifest.get("metrics", {}).get("seconds_per_step"))
    ]
    drills = {
        adapter.name for adapter in adapters if adapter.manifest["spec"].get("shuffle_answers")
    }
    return Measured(
        seconds_per_step=sum(seconds[-5:]) / len(seconds[-5:]) if seconds else None,
        coverage=coverage,
        trained=frozenset(a.dataset_digest for a in adapters if a.name in released - drills),
        due=due_tasks(context, ends),
    )
