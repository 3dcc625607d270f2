"""Reports of drift as artifacts of the Prefect run that made them."""

from __future__ import annotations

from collections.abc import Sequence
from logging import Logger, LoggerAdapter
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.artifacts import showing
from flows.drift_reports import DriftReport
from flows.reporting import report_url
from flows.watching import Look
from flows.wiring import Context


@showing
def show_report(context: Context, key: str, made: DriftReport, against: str) -> None:
    """Links to the page and to its data.

    Args:
        key: of the artifact; lower-case letters, digits and dashes.
    """
    summary = made.summary
    create_link_artifact(
        key=key,
        link=report_url(context, made.html_key),
        link_text=f"Drift of {made.task_id}, {against}: {', '.join(summary.drifted) or 'none'}",
        description=f"{summary.reference_rows} calls against {summary.current_rows}, "
        f"{len(summary.columns)} columns",
    )
    create_link_artifact(
        key=f"{key}-data",
        link=report_url(context, made.json_key),
        link_text=f"The same as JSON: {made.json_key}",
    )


def show_looks(
    context: Context, found: Sequence[Look], logger: Logger | LoggerAdapter[Any]
) -> None:
    """Each look's links, and one table of what they found."""
    for look in found:
        key = f"drift-{look.task_id}-{look.against}"
        show_report(context, key, look.report, f"against {look.against}")
        for finding in look.report.summary.findings:
            logger.warning("%s, against %s: %s", look.task_id, look.against, finding.told())
    if found:
        _show_table(found)


@showing
def _show_table(found: Sequence[Look]) -> None:
    rows = [
        {
            "task": look.task_id,
            "against": look.against,
            "drifted": ", ".join(look.report.summary.drifted) or "-",
            "columns": len(look.report.summary.columns),
            "calls": look.report.summary.current_rows,
            "compared with": look.report.summary.reference_rows,
        }
        for look in found
    ]
    create_table_artifact(key="drift", table=rows, description="What was looked at, and found")
