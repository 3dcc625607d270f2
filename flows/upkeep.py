"""The smaller flows: ingest by day, tend rollouts, watch for drift, clear away; on demand the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Crashed, State
from pydantic import Field

from flows.approving import Settling
from flows.artifacts import described, showing
from flows.drift_artifacts import show_looks
from flows.holding import Busy, hold
from flows.housekeeping import housekeep
from flows.night import night
from flows.reporting import report_url
from flows.rollout_picture import keep_picture
from flows.taking_in import ingest_logs
from flows.tending import Tender
from flows.watching import watch_tasks
from flows.wiring import Context, open_context
from infra.objects.store import ObjectStoreError
from serving.registry.records import Rollout
from serving.rollout.controller import rollback as take_back

MAX_ROWS = 500
TEND_FOR_SECONDS = 900.0
"""One run of the rollout flow tends this long; the schedule starts the next one."""


@flow(
    name="ingest", flow_run_name="ingest", retries=2, retry_delay_seconds=30, timeout_seconds=3600
)
def ingest() -> dict[str, Any]:
    """Take the newest logs in, so that the night has less to do."""
    with open_context() as context:
        report = ingest_logs(context, get_run_logger().info)
    return vars(report)


@flow(name="rollout", flow_run_name="tend open rollouts", timeout_seconds=3600)
def rollout() -> int:
    """Tend the open rollouts until none is open or the run has lasted a quarter of an hour."""
    logger = get_run_logger()
    ends = time.monotonic() + TEND_FOR_SECONDS
    with open_context() as context:
        tender, approvals = Tender(context), Settling(context, logger.info)
        moves: dict[str, Rollout] = {}
        try:
            with hold(context.database, "tending", context.holder):
                while True:
                    began = time.monotonic()
                    tended = tender.look()
                    for moved in tended.moved:
                        logger.info("%s is %s: %s", moved.adapter, moved.state, moved.reason)
                        moves[moved.id] = moved
                    approvals.ask()
                    if tended.open == 0 or time.monotonic() > ends:
                        return tended.open
                    took = time.monotonic() - began
                    time.sleep(rest_seconds(context.settings.rollout.tend_seconds, took))
        except Busy:
            logger.info("another run tends the rollouts")
            return 0
        finally:
            # The lease is free again: a picture is no reason for a rollback to wait.
            for moved in moves.values():
                _show(context, moved)


def rest_seconds(every: float, took: float) -> float:
    """How long to sleep so that a look begins every so many seconds, however long it takes."""
    return max(0.0, every - took)


@flow(
    name="watch",
    flow_run_name="watch for drift",
    retries=2,
    retry_delay_seconds=30,
    timeout_seconds=3600,
)
def watch() -> list[str]:
    """Compare live calls with what the champions learned from and with their days before; ask for a
    retraining where they drifted."""
    with open_context() as context:
        found = watch_tasks(context)
        show_looks(context, found, get_run_logger())
        context.deliver_messages()
    return sorted({look.task_id for look in found if look.drifted})


@described
@flow(name="housekeeping", flow_run_name="clear away", timeout_seconds=6 * 3600)
def housekeeping(dry_run: bool = False) -> dict[str, int]:
    """Clear away what is past its time; never what a route or an open rollout names.

    Args:
        dry_run: Only say what would go.
    """
    with open_context() as context:
        found = housekeep(context, dry_run=dry_run)
    kept = found.counts()
    _show_cleared([vars(entry) for entry in found.done if entry.outcome != "kept"], kept)
    return kept


def _retraining() -> str:
    asked = runtime.flow_run.parameters
    return f"retrain {asked['task'] or 'all tasks'}: {asked['reason']}"


@described
@flow(name="retrain", flow_run_name=_retraining, timeout_seconds=18 * 3600)
def retrain(
    task: str | None = None,
    reason: str = "by hand",
    within_hours: Annotated[float, Field(gt=0, le=24)] = 4.0,
    asked_by: str = "prefect",
) -> dict[str, Any] | State[Any]:
    """Train one task (or all) now, judge it, and open its rollout; while a night runs, after it.

    Args:
        task: The id of a task; empty for all.
        reason: Why; shown in the run's name.
        within_hours: How long training may take; what is not done by then waits for a night.
        asked_by: Who wants it.
    """
    get_run_logger().info("asked for by %s", asked_by)
    ended = night(
        reason=f"retrain, {reason}",
        only=task or None,
        by_hand=True,
        within_hours=within_hours,
        return_state=True,
    )
    if ended.is_crashed():
        return Crashed(message=ended.message)  # of this run, which is what is taken over
    return ended.result()


@described
@flow(name="rollback", flow_run_name="roll back {task}: {reason}", timeout_seconds=300)
def rollback(
    task: str, reason: str = "by hand", to: str | None = None, asked_by: str = "prefect"
) -> str:
    """Put the previous champion, or the teacher, back.

    Args:
        task: The id of a task; `nightschool tasks` lists them.
        reason: Why; shown in the run's name and kept in the events.
        to: An earlier champion, or teacher; empty for the previous one.
        asked_by: Who wants it; kept in the events.
    """
    with open_context() as context:
        route = take_back(
            context.registry,
            task,
            to or None,
            actor=asked_by[:100],
            why=reason,
            channels=tuple(context.channels),
        )
        context.deliver_messages()
    return route.champion


@showing
def _show_cleared(rows: Sequence[dict[str, Any]], kept: Mapping[str, int]) -> None:
    create_table_artifact(
        key="housekeeping",
        table=list(rows[:MAX_ROWS]),
        description=f"What goes, and why: {kept}",
    )


@showing
def _show(context: Context, moved: Rollout) -> None:
    """Where it stands, as an artifact of the run: in words, and as a picture that is kept."""
    try:
        page, image = keep_picture(context, moved.id)
        drawn = f"[evidence, steps and who acted]({report_url(context, page)})"
        if image is not None:
            drawn += f"\n\n![evidence and steps]({report_url(context, image)})"
    except ObjectStoreError as error:
        drawn = f"no picture: {error}"
    create_markdown_artifact(
        key=f"rollout-{moved.id}",
        markdown=f"**{moved.adapter}** is **{moved.state}** (step {moved.step}): {moved.reason}\n\n"
        f"{drawn}\n\n`nightschool rollouts show {moved.id}`",
        description="Where a rollout stands",
    )
