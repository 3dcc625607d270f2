"""What a run shows of itself in Prefect: tables, scorecards, links, how far it is.

Showing fails no run: what is shown stands in the registry and the store as well.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import Flow
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.following import told
from flows.judging import Judgement
from flows.planning import RunFact, plan_rows, plan_totals
from flows.reporting import report_url
from flows.scorecards import page_of
from flows.wiring import Context
from trainers.plan import Plan
from trainers.run_folder import Progress as RunProgress

logger = logging.getLogger(__name__)
P = ParamSpec("P")
F = TypeVar("F", bound=Flow[Any, Any])
STEPS = 3
"""Of each task: train, judge, release."""


def described(flow: F) -> F:
    """With its docstring as description, but for the arguments, which the run form shows one by one."""
    flow.description = (flow.description or "").partition("Args:")[0].rstrip()
    return flow


def showing(show: Callable[P, None]) -> Callable[P, None]:
    """What cannot be shown is a line in the log."""

    @functools.wraps(show)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever Prefect's client raises
            logger.warning("%s: nothing is shown in Prefect: %s", show.__name__, error)

    return wrapped


@showing
def show_plan(plan: Plan, workers: int) -> None:
    """What is trained tonight and what is not, with the reason."""
    totals = plan_totals(plan, workers)
    create_table_artifact(
        key="plan",
        table=plan_rows(plan),
        description=f"The night's plan: {totals['workers']} workers are done after "
        f"{totals['ends_after_seconds']:.0f} seconds",
    )


@showing
def show_facts(facts: Sequence[RunFact]) -> None:
    create_table_artifact(
        key="plan-and-outcome",
        table=[vars(fact) for fact in facts],
        description="The plan against what happened, in seconds",
    )


@showing
def show_scores(context: Context, judgements: Sequence[Judgement]) -> None:
    create_markdown_artifact(
        key="scorecards",
        markdown=scores(judgements, lambda key: report_url(context, key)),
        description="Mean correctness on held-out sessions",
    )


@showing
def show_scorecard(task_id: str, page: str) -> None:
    create_markdown_artifact(
        key=f"scorecard-{task_id}", markdown=page, description="One adapter on one page"
    )


def scores(judgements: Sequence[Judgement], link: Callable[[str], str]) -> str:
    """The scorecards as Markdown: a row an adapter, then the gate's reasons.

    Args:
        link: the address of a report, from its key.
    """
    lines = [
        "| judged | gate | base | adapter | teacher | served | coverage |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for judged in judgements:
        figures = (
            judged.base_score,
            judged.adapter_score,
            judged.teacher_score,
            judged.served_score,
            judged.coverage,
        )
        cells = " | ".join(f"{figure:.3f}" for figure in figures)
        lines.append(
            f"| [{judged.adapter}]({link(page_of(judged))}) | {judged.verdict} | {cells} |"
        )
    if not judgements:
        return "No adapter was judged."
    reasons = [
        f"- {judged.adapter}: {reason}" for judged in judgements for reason in judged.reasons
    ]
    return "\n".join([*lines, "", *reasons])


class Progress:
    """How far a night is: steps of its tasks that have ended, of all. Drawn by Prefect as a bar."""

    def __init__(self, tasks: int) -> None:
        self._tasks, self._steps = tasks, 0
        self._artifact: UUID | None = None
        if tasks:
            self._begin()

    @showing
    def _begin(self) -> None:
        made: Any = create_progress_artifact(key="progress", progress=0.0, description=self._told())
        self._artifact = made

    @showing
    def step(self) -> None:
        """One more step of one task has ended, well or not."""
        self._steps += 1
        if self._artifact is not None:
            share = 100.0 * self._steps / (STEPS * self._tasks)
            update_progress_artifact(self._artifact, min(share, 100.0), self._told())

    def _told(self) -> str:
        return f"{self._steps} of {STEPS * self._tasks} steps of {self._tasks} tasks have ended"


class TrainingBar:
    """How far one task's training is: a bar of its task run, with loss and tokens a second."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._artifact: UUID | None = None

    @showing
    def show(self, progress: RunProgress) -> None:
        percent = 100.0 * min(1.0, progress.step / max(1, progress.steps))
        said = f"training {self._task_id}: {told(progress)}"
        if self._artifact is None:
            made: Any = create_progress_artifact(
                key=f"training-{self._task_id}", progress=percent, description=said
            )
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, percent, said)
