"""Reports that people read: drift between a task's older and newer calls, kept beside the logs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.drift import DriftSummary, report
from flows.wiring import Context
from infra.prompting.template import PRUNED, render_answer, render_prompt
from infra.signed_links import LinkSigner
from infra.signing_keys import SigningKeyError, signing_keys
from trainers.data_sets.versions import DatasetVersion, Example, read_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftReport:
    task_id: str
    summary: DriftSummary
    html_key: str
    """Object key of the page; ``report_url`` makes it a link."""


def drift_report(context: Context, dataset: DatasetVersion) -> DriftReport:
    """Compare what the adapter learns from (older sessions) with the newest sessions."""
    reference = rows(read_split(context.store, dataset, "train"))
    current = rows(read_split(context.store, dataset, "test"))
    limit = context.settings.watch.max_rows
    prefix = f"reports/drift/{dataset.task_id}-{dataset.digest[:16]}"
    with tempfile.TemporaryDirectory() as folder:
        summary = report(reference[-limit:], current[-limit:], Path(folder))
        for file in sorted(Path(folder).iterdir()):
            context.store.put(f"{prefix}/{file.name}", file.read_bytes())
    return DriftReport(dataset.task_id, summary, f"{prefix}/{summary.html.name}")


def report_url(context: Context, key: str) -> str:
    """A link that opens this report for ``hooks.link_seconds``; without a key it asks for one."""
    hooks = context.settings.hooks
    try:
        token = LinkSigner(signing_keys(hooks)).make("report", key, hooks.link_seconds)
    except SigningKeyError as error:
        # A night is not stopped by a link: the report opens with an API key.
        logger.warning("the link to %s is not signed: %s", key, error)
        return f"{hooks.address}/{key}"
    return f"{hooks.address}/{key}?link={token}"


def rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Examples as the columns that drift is looked for in."""
    return [
        {
            "prompt": render_prompt(example.request, PRUNED),
            "answer": render_answer(example.answer),
            "action": "+".join(
                sorted(call["function"]["name"] for call in example.answer.get("tool_calls") or [])
            )
            or "words",
        }
        for example in examples
    ]
