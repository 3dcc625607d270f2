"""Which tasks to train tonight, for how long, and in plain words why not the others. Pure.

Tasks are taken by expected saving, highest first, and laid out on the workers there are; what
cannot pass the gate afterwards (too few examples, a teacher at odds with itself) or cannot finish
before the night ends costs no training.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from infra.settings.learning import Night
from infra.settings.model import Settings

MIN_AGREEMENT = 0.6
"""Share of repeated prompts that the teacher must answer alike; below, no label can be learnt."""
MIN_AGREEMENT_PROMPTS = 10
"""Repeated prompts before the agreement is believed."""
MIN_STEPS_SHARE = 0.25
"""A run is cut to what fits into the night, but not below this share of its steps."""
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
class Measured:
    """What earlier nights taught. The defaults are those of a first night."""

    seconds_per_step: float | None = None
    """None: ``night.seconds_per_step``."""
    overhead_seconds: float = 60.0
    """Per run, besides its steps: loading, packaging, judging."""
    coverage: Mapping[str, float] = field(default_factory=dict)
    """Task id to the share of calls its last adapter answered."""
    trained: frozenset[str] = frozenset()
    """Digests of data sets that an adapter was already trained on."""
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


@dataclass(frozen=True)
class Plan:
    runs: tuple[PlannedRun, ...]
    skipped: tuple[tuple[str, str], ...]
    """(task id, why it is not trained)."""
    deadline: datetime | None
    estimated_seconds: float
    """Until the last run is done."""


def night_window(night: Night, now: datetime) -> tuple[datetime, datetime]:
    """Start and end (UTC) of the night that ``now`` lies in, else of the next one.

    Times on the clock of ``night.timezone``; an end at or before the start is on the next day.
    """
    zone = ZoneInfo(night.timezone)
    start, end = time.fromisoformat(night.start), time.fromisoformat(night.end)
    local = now.astimezone(zone)
    for days in (-1, 0, 1, 2):
        day = local.date() + timedelta(days=days)
        opens = datetime.combine(day, start, zone).astimezone(UTC)
        last = day + timedelta(days=1) if end <= start else day
        closes = datetime.combine(last, end, zone).astimezone(UTC)
        if now < closes:
            return opens, closes
    raise AssertionError("a night ends within two days")


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
    feasible: list[tuple[float, PlannableTask, PlannableDataset]] = []
    for task in tasks:
        dataset = datasets.get(task.id)
        problem = _obstacle(task, dataset, settings, measured)
        if problem is not None or dataset is None:
            skipped.append((task.id, problem or "no data set"))
            continue
        feasible.append((_saving(task, settings, measured), task, dataset))
    feasible.sort(key=lambda item: (-item[0], item[1].id))

    window = (deadline - now).total_seconds()
    per_step = measured.seconds_per_step or settings.night.seconds_per_step
    workers = [0.0] * settings.training.workers
    runs: list[PlannedRun] = []
    for saving, task, dataset in feasible:
        if len(runs) >= settings.night.max_tasks:
            skipped.append(
                (task.id, f"{settings.night.max_tasks} tasks with more saving come first")
            )
            continue
        free_at = workers[0]
        wanted = wanted_steps(dataset, settings)
        fit = math.floor((window - free_at - measured.overhead_seconds) / per_step)
        steps = min(wanted, fit)
        if steps < max(1, math.ceil(wanted * MIN_STEPS_SHARE)):
            left = max(0.0, window - free_at)
            skipped.append(
                (
                    task.id,
                    f"does not fit: {wanted} steps need about "
                    f"{_minutes(wanted * per_step + measured.overhead_seconds)}, "
                    f"{_minutes(left)} are left of the night",
                )
            )
            continue
        seconds = steps * per_step + measured.overhead_seconds
        heapq.heapreplace(workers, free_at + seconds)
        shortened = "" if steps == wanted else f", cut from {wanted} to fit the night"
        reason = (
            f"saves about {saving:.2f} a day; {_train_rows(dataset)} training examples, "
            f"{steps} steps{shortened}"
            + ("; due, for what was forgotten" if task.id in measured.due else "")
        )
        runs.append(PlannedRun(task.id, dataset.digest, steps, seconds, free_at, saving, reason))
    return Plan(tuple(runs), tuple(skipped), deadline, max(workers) if runs else 0.0)


def wanted_steps(dataset: PlannableDataset, settings: Settings) -> int:
    """Optimizer steps for the set number of epochs, at most ``training.max_steps``."""
    training = settings.training
    steps = math.ceil(_train_rows(dataset) * training.epochs / training.batch_size)
    return max(1, min(training.max_steps, steps))


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
    agreement = dataset.manifest.get("agreement") or {}
    value, prompts = agreement.get("value"), int(agreement.get("prompts", 0))
    if value is not None and prompts >= MIN_AGREEMENT_PROMPTS and value < MIN_AGREEMENT:
        return (
            f"the teacher agrees with itself on only {value:.0%} of {prompts} repeated prompts, "
            f"{MIN_AGREEMENT:.0%} are needed"
        )
    if dataset.digest in measured.trained and task.id not in measured.due:
        return "nothing new: already trained on exactly these examples"
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
