"""Which tasks to train tonight, for how long, and in plain words why not the others. Pure.

Tasks are taken by expected saving per second of a worker, highest first, those that a night had no
room for before all others; what is taken is laid on the workers longest first. What cannot pass the
gate afterwards (too few examples, a teacher at odds with itself) or cannot finish before the night
ends costs no training, and what only did not fit comes first tomorrow.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from infra.settings.learning import Night
from infra.settings.model import Settings
from infra.tasks.joined import merged_into
from trainers.defaults import batch_size
from trainers.packing import launch_order, lay_out, makespan
from trainers.search import CURVE_SHARES, CURVE_STEPS, share_of_steps

MIN_AGREEMENT = 0.6
"""Share of repeated prompts that the teacher must answer alike; below, no label can be learnt."""
MIN_AGREEMENT_PROMPTS = 10
"""Repeated prompts before the agreement is believed."""
MIN_STEPS_SHARE = 0.25
"""A run is cut to what fits into the night, but not below this share of its steps."""
GOOD_BASE = 0.98
"""A base model that is right this often without an adapter needs none."""
GOOD_BASE_SECONDS = 30 * 86_400
"""So long that is believed; then the task is trained, and its base judged, once more."""
GROWN = 1.5
"""A data set so many times as large as the one that the base was judged by is another task, perhaps."""
ASSUMED_COVERAGE = 0.5
"""Share of calls taken over by an adapter that is not yet measured."""


class PlannableTask(Protocol):
    """What the planner reads of a task (``trainers.discover.discover.TaskSummary`` has it)."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def details(self) -> Mapping[str, Any]: ...


class PlannableDataset(Protocol):
    """What the planner reads of a data set (``trainers.data_sets.versions.DatasetVersion`` has it)."""

    @property
    def digest(self) -> str: ...
    @property
    def manifest(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class BaseScore:
    """How often the base model alone was right on a task, when it was last judged there."""

    value: float
    """0 to 1."""
    age_seconds: float = 0.0
    train_rows: int = 0
    """Of the data set whose test examples it was asked."""

    def holds_for(self, dataset: PlannableDataset) -> bool:
        """Whether it still says something: not too long ago, and of about as many calls."""
        grown = _train_rows(dataset) >= GROWN * max(1, self.train_rows)
        return self.age_seconds < GOOD_BASE_SECONDS and not grown


@dataclass(frozen=True)
class Measured:
    """What earlier nights taught. The defaults are those of a first night."""

    tokens_per_second: float | None = None
    """Of a training run here; None: steps are taken to last ``night.seconds_per_step``."""
    tokens_per_example: Mapping[str, float] = field(default_factory=dict)
    """Data set digest to the mean tokens of its training examples; None of it: as above."""
    overhead_seconds: float = 60.0
    """Per run, besides its steps: loading, packaging, judging."""
    coverage: Mapping[str, float] = field(default_factory=dict)
    """Task id to the share of calls its last adapter answered."""
    trained: frozenset[str] = frozenset()
    """Digests of data sets that an adapter was already trained on."""
    waiting: frozenset[str] = frozenset()
    """Ids of tasks that the last night had no room for."""
    curves: Mapping[str, str] = field(default_factory=dict)
    """Task id to what its last trials said of more data, and of other base models."""
    base_scores: Mapping[str, BaseScore] = field(default_factory=dict)
    """Task id to what the present base model scored there without an adapter."""
    due: frozenset[str] = frozenset()
    """Tasks whose adapter learned from what was forgotten since: trained also on known examples."""


@dataclass(frozen=True)
class PlannedRun:
    task_id: str
    dataset: str
    """Digest of the data set version."""
    steps: int
    estimated_seconds: float
    starts_after_seconds: float
    """Estimated wait for a free worker."""
    saving: float
    """Expected cost of teacher tokens saved per day."""
    reason: str
    saving_per_worker_hour: float = 0.0
    """``saving`` over the worker hours that it costs once: what runs are ordered by."""


@dataclass(frozen=True)
class Plan:
    runs: tuple[PlannedRun, ...]
    skipped: tuple[tuple[str, str], ...]
    """(task id, why it is not trained)."""
    deadline: datetime | None
    estimated_seconds: float
    """Until the last run is done."""
    deferred: tuple[str, ...] = ()
    """Ids of the skipped tasks that only did not fit: they come first tomorrow."""


def night_window(night: Night, now: datetime) -> tuple[datetime, datetime]:
    """Start and end (UTC) of the night that ``now`` lies in, else of the next one.

    Times on the clock of ``night.timezone``; an end at or before the start is on the next day. A start
    that the clock skips counts as the hour before, when Prefect's schedule begins such a night; of two
    the first is taken.
    """
    zone = ZoneInfo(night.timezone)
    start, end = time.fromisoformat(night.start), time.fromisoformat(night.end)
    local = now.astimezone(zone)
    for days in (-1, 0, 1, 2, 3):
        day = local.date() + timedelta(days=days)
        opens = min(
            datetime.combine(day, start.replace(fold=fold), zone).astimezone(UTC) for fold in (0, 1)
        )
        last = day + timedelta(days=1) if end <= start else day
        closes = datetime.combine(last, end, zone).astimezone(UTC)
        if max(now, opens) < closes:
            return opens, closes
    raise AssertionError("of two days one has a night")


def plan(
    tasks: Sequence[PlannableTask],
    datasets: Mapping[str, PlannableDataset],
    settings: Settings,
    now: datetime,
    measured: Measured | None = None,
    *,
    deadline: datetime | None = None,
) -> Plan:
    """Choose tonight's runs.

    Args:
        tasks: all tasks known.
        datasets: task id to the version to train on; a task without one is skipped.
        now: aware time at which the first run can start.
        deadline: when the last run must be done. None: the end of the night that ``now`` lies in;
            outside the night nothing is trained.
    """
    measured = measured or Measured()
    skipped: list[tuple[str, str]] = []
    if deadline is None:
        opens, closes = night_window(settings.night, now)
        if now < opens:
            local = opens.astimezone(ZoneInfo(settings.night.timezone))
            reason = f"outside the night, which starts at {local:%H:%M} {settings.night.timezone}"
            return Plan((), tuple((task.id, reason) for task in tasks), None, 0.0)
        deadline = closes
    feasible: list[_Wish] = []
    for task in tasks:
        dataset = datasets.get(task.id)
        problem = _obstacle(task, dataset, settings, measured)
        if problem is not None or dataset is None:
            skipped.append((task.id, problem or "no data set"))
            continue
        feasible.append(_wish(task, dataset, settings, measured))
    feasible.sort(key=lambda wish: (not wish.waited, -wish.density, wish.task.id))

    window, workers = (deadline - now).total_seconds(), settings.training.workers
    taken: list[_Wish] = []
    deferred: list[str] = []
    for wish in feasible:
        if len(taken) >= settings.night.max_tasks:
            first = f"{settings.night.max_tasks} tasks with more saving per second come first"
            skipped.append((wish.task.id, first))
            deferred.append(wish.task.id)
            continue
        fitting = _fitting(wish, taken, window, workers)
        if fitting is None:
            left = max(0.0, window - _earliest_end(taken, workers))
            skipped.append(
                (
                    wish.task.id,
                    f"does not fit: {wish.steps} steps need about {_minutes(wish.seconds)}, "
                    f"{_minutes(left)} are left of the night; it comes first tomorrow",
                )
            )
            deferred.append(wish.task.id)
            continue
        taken.append(fitting)
    lengths = [wish.seconds for wish in taken]
    starts = lay_out(lengths, workers)
    runs = tuple(_planned(taken[index], starts[index], measured) for index in launch_order(lengths))
    return Plan(runs, tuple(skipped), deadline, makespan(lengths, workers), tuple(deferred))


@dataclass(frozen=True)
class _Wish:
    """A run that one would like to make."""

    task: PlannableTask
    dataset: PlannableDataset
    steps: int
    wanted: int
    per_step: float
    overhead: float
    saving: float
    waited: bool
    """The last night had no room for it."""

    @property
    def seconds(self) -> float:
        return self.steps * self.per_step + self.overhead

    @property
    def density(self) -> float:
        """Saving a day per second of a worker."""
        return self.saving / max(1e-9, self.seconds)


def _wish(
    task: PlannableTask, dataset: PlannableDataset, settings: Settings, measured: Measured
) -> _Wish:
    steps = wanted_steps(dataset, settings)
    training = settings.training
    tried = share_of_steps(max(training.candidates, 1 + len(training.candidate_bases)), steps)
    if settings.training.learning_curve:
        tried += len(CURVE_SHARES) / CURVE_STEPS
    return _Wish(
        task,
        dataset,
        steps,
        steps,
        # Candidates share the steps of a search, which the estimate spreads over the run's own.
        seconds_per_step(dataset, settings, measured) * tried,
        measured.overhead_seconds,
        _saving(task, settings, measured),
        task.id in measured.waiting,
    )


def _fitting(wish: _Wish, taken: Sequence[_Wish], window: float, workers: int) -> _Wish | None:
    """The wish, cut to the steps that still fit beside what is taken; None when too few would."""
    lengths = [other.seconds for other in taken]
    if makespan([*lengths, wish.seconds], workers) <= window:
        return wish
    room = window - _earliest_end(taken, workers)
    steps = min(wish.wanted, math.floor((room - wish.overhead) / wish.per_step))
    if steps < max(1, math.ceil(wish.wanted * MIN_STEPS_SHARE)):
        return None
    cut = replace(wish, steps=steps)
    return cut if makespan([*lengths, cut.seconds], workers) <= window + 1e-6 else None


def _earliest_end(taken: Sequence[_Wish], workers: int) -> float:
    lengths = [wish.seconds for wish in taken]
    if len(lengths) < workers:
        return 0.0
    ends = [0.0] * workers
    for index in launch_order(lengths):
        heapq.heapreplace(ends, ends[0] + lengths[index])
    return ends[0]


def _planned(wish: _Wish, start: float, measured: Measured) -> PlannedRun:
    shortened = "" if wish.steps == wish.wanted else f", cut from {wish.wanted} to fit the night"
    waited = "; it waited for a night with room" if wish.waited else ""
    curve = measured.curves.get(wish.task.id)
    reason = (
        f"saves about {wish.saving:.2f} a day; {_train_rows(wish.dataset)} training examples, "
        f"{wish.steps} steps{shortened}{waited}"
        + ("; due, for what was forgotten" if wish.task.id in measured.due else "")
        + (f"; {curve}" if curve else "")
    )
    return PlannedRun(
        wish.task.id,
        wish.dataset.digest,
        wish.steps,
        wish.seconds,
        start,
        wish.saving,
        reason,
        wish.density * 3600,
    )


def seconds_per_step(dataset: PlannableDataset, settings: Settings, measured: Measured) -> float:
    """Estimated seconds of one optimizer step: from measured tokens per second where there are any."""
    tokens = measured.tokens_per_example.get(dataset.digest)
    if measured.tokens_per_second and tokens:
        return step_examples(dataset, settings) * tokens / measured.tokens_per_second
    return settings.night.seconds_per_step


def wanted_steps(dataset: PlannableDataset, settings: Settings) -> int:
    """Optimizer steps for the set number of epochs, at most ``training.max_steps``."""
    training = settings.training
    steps = math.ceil(_train_rows(dataset) * training.epochs / step_examples(dataset, settings))
    return max(1, min(training.max_steps, steps))


def step_examples(dataset: PlannableDataset, settings: Settings) -> int:
    """Examples per optimizer step: as set, or by their number; a multiple of the run's processes."""
    wanted = settings.training.batch_size or batch_size(_train_rows(dataset))
    processes = settings.training.processes_per_run
    return -(-wanted // processes) * processes


def _obstacle(
    task: PlannableTask,
    dataset: PlannableDataset | None,
    settings: Settings,
    measured: Measured,
) -> str | None:
    if task.state == "retired":
        return "the task is retired"
    if task.policy == "teacher":
        return "its policy leaves the task to the teacher"
    if (into := merged_into(task.details)) is not None:
        return f"merged into {into}, whose calls are another tenant's"
    if task.state == "observed":
        return f"fewer than {settings.discovery.min_calls} calls seen"
    if dataset is None:
        return "no data set: none of its calls has a usable answer of the teacher"
    counts = dataset.manifest.get("counts", {})
    train, test = _train_rows(dataset), int(counts.get("test", 0))
    if train < settings.training.min_examples:
        return f"{train} training examples, at least {settings.training.min_examples} are needed"
    if test < settings.gate.min_rows:
        return f"{test} test examples, the gate needs {settings.gate.min_rows}"
    if not counts.get("validation", 0):
        return "no validation examples: too few sessions to split"
    disagreement = _disagreement(dataset)
    if disagreement is not None:
        return disagreement
    base = measured.base_scores.get(task.id)
    good = base is not None and base.value >= GOOD_BASE and base.holds_for(dataset)
    if base is not None and good and task.id not in measured.due:
        left = (GOOD_BASE_SECONDS - base.age_seconds) / 86_400
        return (
            f"the base model alone is right on {base.value:.0%} of held-out calls: nothing to learn; "
            f"looked at again in {left:.0f} days, or when its examples are half as many again"
        )
    if dataset.digest in measured.trained and task.id not in measured.due:
        return "nothing new: already trained on exactly these examples"
    return None


def _disagreement(dataset: PlannableDataset) -> str | None:
    """That the teacher is at odds with itself, on the same prompts or on like ones."""
    found = dataset.manifest.get("agreement") or {}
    for said, what in ((found, "repeated"), (found.get("like") or {}, "like")):
        value, prompts = said.get("value"), int(said.get("prompts", 0))
        if value is not None and prompts >= MIN_AGREEMENT_PROMPTS and value < MIN_AGREEMENT:
            return (
                f"the teacher agrees with itself on only {value:.0%} of {prompts} {what} prompts, "
                f"{MIN_AGREEMENT:.0%} are needed"
            )
    return None


def _saving(task: PlannableTask, settings: Settings, measured: Measured) -> float:
    volume = task.details.get("volume") or {}
    tokens = float(volume.get("tokens_per_day") or 0.0)
    coverage = measured.coverage.get(task.id, ASSUMED_COVERAGE)
    return tokens * coverage * settings.teacher.cost_per_million_tokens / 1e6


def _train_rows(dataset: PlannableDataset) -> int:
    return int(dataset.manifest.get("counts", {}).get("train", 0))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
