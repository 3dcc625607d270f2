"""From logs taken in to adapters: the steps of a night as plain functions. No Prefect here.

Each step is keyed by content (object and etag, data set digest, spec digest), so a night that was
killed and runs again finds what is done and does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.following import Say, Show, follow
from flows.trials import choose, competing, learn_curve
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.objects.store import ObjectMissing, ObjectStoreError
from infra.prompting.template import PromptFormat
from serving.registry.retention.forgetting import forgotten
from trainers.artifact import package
from trainers.backends.preparing import context_tokens
from trainers.base_model import BaseModel, prepare_base
from trainers.data_sets.golden_places import untaught_cases
from trainers.data_sets.labels import Example
from trainers.data_sets.near_copies import repeating
from trainers.data_sets.splits import SPLITS, SplitName
from trainers.data_sets.versions import DatasetVersion, find_dataset, read_split
from trainers.defaults import MAX_SEQUENCE_TOKENS, longest_sequence
from trainers.discover.discover import TaskSummary, discover
from trainers.encoding import encode, load_tokenizer
from trainers.executors.protocol import Executor, ExecutorLost, RunHandle, RunOutcome, TrainJob
from trainers.failures import classify
from trainers.plan import step_examples
from trainers.resampling import (
    Labels,
    TeacherAway,
    kept_labels,
    labels_digest,
    open_teacher,
    relabel,
    resample,
)
from trainers.run_folder import RunFolder, RunRequest, begun_before
from trainers.run_storage import RunStorage, place_of
from trainers.spec import LoraSpec, TrainSpec

_TAUGHT: tuple[SplitName, ...] = ("train", "validation")


@dataclass(frozen=True)
class Trained:
    """A packaged adapter on the training workers' storage, not yet judged or published."""

    name: str
    task_id: str
    digest: str
    folder: Path
    dataset_digest: str
    spec_digest: str
    seconds: float | None = None
    """From its first process to its end; None when it was found trained."""


class TrainingFailed(Exception):
    """A run ended without an adapter; the message is the run's own.

    Args:
        state: as ``trainers.failures`` names it; ``cancelled`` where the night's end came first.
    """

    def __init__(self, message: str, state: str = "failed") -> None:
        super().__init__(message)
        self.state = state


@contextmanager
def ending_by_name(task_id: str) -> Iterator[None]:
    """What a store, a disk or a base model ends a training with here, as it would end its run there.

    Raises TrainingFailed for every error that ``trainers.failures`` has a name for.
    """
    try:
        yield
    except (TrainingFailed, ExecutorLost):
        raise
    except Exception as error:
        failure = classify(error)
        if failure.state == "unexpected":
            raise
        told = f"training {task_id} ended failed ({failure.state}): {failure.message}"
        raise TrainingFailed(told, failure.state) from error


def discover_tasks(context: Context) -> list[TaskSummary]:
    return discover(context.store, context.database, context.settings, utc_now())


def dataset_of(context: Context, digest: str) -> DatasetVersion:
    return find_dataset(context.store, context.registry.dataset(digest).location)


def train_spec(
    context: Context,
    base: BaseModel,
    dataset: DatasetVersion,
    steps: int,
    *,
    shuffle_answers: bool = False,
    say: Say = lambda _: None,
) -> TrainSpec:
    """What the settings and the data set make of one run.

    A run that an earlier night began on the same examples is gone on with, whatever number of steps
    fits into what is left of this one: its deadline ends it in time.
    """
    training = context.settings.training
    old = _previous(context, dataset) if training.old_share else None
    labels = (
        _settled(context, dataset, say) if training.resample_calls and not shuffle_answers else {}
    )
    wanted = TrainSpec(
        task_id=dataset.task_id,
        base_model=base.name,
        base_digest=base.digest,
        dataset_digest=dataset.digest,
        lora=LoraSpec(
            rank=training.rank,
            alpha=2 * training.rank,
            dropout=training.dropout,
            last_layers=training.last_layers,
            rslora=training.rslora,
        ),
        format=dict(dataset.manifest["format"]),
        learning_rate=training.learning_rate,
        batch_size=step_examples(dataset, context.settings),
        processes=training.processes_per_run,
        batching=training.batching,
        optimizer=training.optimizer,
        load_in_4bit=training.load_in_4bit,
        patience=training.patience,
        old_share=training.old_share if old else 0.0,
        old_datasets=(old.digest,) if old else (),
        steps=steps,
        max_sequence_tokens=training.max_sequence_tokens or _longest(context, base, dataset),
        checkpoint_steps=training.checkpoint_steps,
        labels_digest=labels_digest(labels),
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
    show: Show = lambda _: None,
) -> Trained:
    """Train and package one adapter; a run that was finished before is found again.

    Args:
        show: takes the progress of the whole run, not of the trials before it.

    Raises:
        TrainingFailed: the run failed after its retries, or was cancelled.
        ExecutorLost: nothing wrong with the run; another executor can go on with it.
    """
    training = context.settings.training
    base = prepare_base(context.settings.engine, say)
    bases = [base] if spec.shuffle_answers else competing(context, base, say)
    folders = {one.digest: one.folder for one in bases}
    place = place_of(context.settings.storage) if training.store_checkpoints else None
    labels = kept_labels(context.store, dataset.digest) if spec.labels_digest else {}
    if labels_digest(labels) != spec.labels_digest:
        raise TrainingFailed(f"the teacher's new answers for {spec.task_id} changed: plan it again")
    rows = {name: _rows(context, dataset, name, labels) for name in _TAUGHT}
    old = [row for digest in spec.old_datasets for row in _old_rows(context, digest, dataset)]

    def start(spec: TrainSpec, pause_step: int | None) -> RunHandle:
        storage = RunStorage.of(context.store, spec.digest)
        folder = RunFolder.create(
            training.runs / spec.digest[:16],
            spec,
            RunRequest(
                base_folder=folders[spec.base_digest],
                backend=training.backend,
                deadline=deadline.timestamp() if deadline else None,
                allow_cpu=training.gpus_per_run == 0,
                cpus_per_process=training.cpus_per_run,
                gpus_per_process=training.gpus_per_run,
                pause_step=pause_step,
                storage=place,
                submitted=time.time(),
            ),
            rows["train"],
            rows["validation"],
            old,
        )
        if place is not None and folder.result() is None:
            storage.push_inputs(folder)
        return executor.submit(
            TrainJob(
                folder.path,
                cpus=training.cpus_per_run,
                gpus=training.gpus_per_run,
                max_retries=training.max_retries,
                storage=place,
                run_id=storage.run_id,
                processes=spec.processes,
            )
        )

    def wait(handle: RunHandle, spec: TrainSpec) -> RunOutcome:
        return follow(handle, trial_name(spec), say, deadline=deadline)

    learn_curve(context, spec, start, wait, say)
    spec = choose(context, spec, start, wait, say, bases[1:])
    handle = start(spec, None)
    folder = RunFolder(handle.job.run_dir)
    storage = RunStorage.of(context.store, spec.digest)
    name = f"training {spec.task_id}"
    outcome = follow(handle, name, say, show=show, deadline=deadline)
    if outcome.state != "done":
        state = f"{outcome.state} ({outcome.failure})" if outcome.failure else outcome.state
        told = f"training {spec.task_id} ended {state}: {outcome.error or 'it had no time left'}"
        if outcome.failure == "cluster_lost":
            raise ExecutorLost(told)
        raise TrainingFailed(told, outcome.failure or outcome.state)
    began = folder.attempts()
    if folder.result() is None and not storage.pull_result(folder):
        told = f"training {spec.task_id} is done, but its result is nowhere"
        why = f": {outcome.error}" if outcome.error else ""
        raise TrainingFailed(f"{told}{why}", outcome.failure or "worker_lost")
    packaged = package(folder.path)
    if place is not None:
        # The adapter is on this disk now; judging and release store it for good.
        with suppress(ObjectStoreError):  # housekeeping clears away what stays
            storage.clear()
    return Trained(
        packaged.name,
        spec.task_id,
        packaged.digest,
        packaged.folder,
        spec.dataset_digest,
        spec.digest,
        time.time() - float(began[0]["time"]) if began else None,
    )


def trial_name(spec: TrainSpec) -> str:
    """What sets a trial apart from the task's other ones."""
    share = f", {spec.data_share:.0%} of the examples" if spec.data_share < 1 else ""
    return f"trial of {spec.task_id} (rank {spec.lora.rank}, rate {spec.learning_rate:g}{share})"


def _longest(context: Context, base: BaseModel, dataset: DatasetVersion) -> int:
    """Tokens of the longest sequence worth training on, from the data's own lengths."""
    form = PromptFormat.from_dict(dataset.manifest["format"])
    rows = _rows(context, dataset, "train")
    found = encode(rows, load_tokenizer(base.folder), form, MAX_SEQUENCE_TOKENS).examples
    lengths = [len(example) for example in found] or [MAX_SEQUENCE_TOKENS]
    return longest_sequence(lengths, context_tokens(base.folder))


def _previous(context: Context, dataset: DatasetVersion) -> DatasetVersion | None:
    """The task's data set before this one."""
    digests = [known.digest for known in context.registry.datasets(dataset.task_id)]
    earlier = digests[: digests.index(dataset.digest)] if dataset.digest in digests else digests
    tainted = forgotten(context.database)
    for digest in reversed(earlier):
        if digest not in tainted:
            with suppress(ObjectMissing):  # past its time
                return dataset_of(context, digest)
    return None


def _old_rows(context: Context, digest: str, dataset: DatasetVersion) -> list[Mapping[str, object]]:
    """Training examples of an earlier data set that this one does not hold in any split, and that are
    nearly like nothing which the new adapter is judged by."""
    splits = {name: read_split(context.store, dataset, name) for name in SPLITS}
    known = {example.call_id for split in splits.values() for example in split}
    old = [
        example
        for example in read_split(context.store, dataset_of(context, digest), "train")
        if example.call_id not in known
    ]
    cases = untaught_cases(context.store, context.database, dataset.task_id)
    golden = [case.example() for case in cases]
    judged = [*golden, *splits["validation"], *splits["test"]]
    left_out = repeating(old, judged, context.settings.ingest.near_duplicate_similarity)
    return [
        {"request": example.request, "answer": example.answer}
        for example in old
        if example.call_id not in left_out
    ]


def _settled(context: Context, dataset: DatasetVersion, say: Say) -> Labels:
    """Ask the teacher again where it disagrees with itself; what it said so far counts anyway."""
    training, examples = context.settings.training, _taught(context, dataset)
    ask, close = open_teacher(context.settings.teacher)
    try:
        resample(
            context.store,
            dataset.digest,
            examples,
            ask,
            calls=training.resample_calls,
            answers=training.resample_answers,
        )
    except TeacherAway as error:
        say(f"{dataset.task_id}: {error}; its other disagreeing answers stay as logged")
    finally:
        close()
    labels = kept_labels(context.store, dataset.digest)
    dropped = sum(answer is None for answer in labels.values())
    if labels:
        say(f"{dataset.task_id}: {len(labels)} prompts settled by the teacher, {dropped} left out")
    return labels


def _taught(context: Context, dataset: DatasetVersion) -> list[Example]:
    return [example for name in _TAUGHT for example in read_split(context.store, dataset, name)]


def _rows(
    context: Context, dataset: DatasetVersion, split: SplitName, labels: Labels | None = None
) -> list[Mapping[str, object]]:
    return [
        {"request": example.request, "answer": example.answer}
        for example in relabel(read_split(context.store, dataset, split), labels or {})
    ]
