"""Commands that only look."""

from __future__ import annotations

import click

from flows.cli.common import JSON_OPTION, context_of, failing_clearly, show


@click.command(epilog="\b\nExamples:\n  nightschool adapters\n  nightschool adapters TASK --json")
@click.argument("task", required=False)
@JSON_OPTION
@click.pass_context
@failing_clearly
def adapters(ctx: click.Context, task: str | None, as_json: bool) -> None:
    """The adapters, how they were judged, and their state."""
    with context_of(ctx) as context:
        if task is not None:
            context.registry.task(task)
        rows = []
        for adapter in context.registry.adapters(task):
            cards = context.registry.scorecards(adapter.name)
            scores = cards[0].body.get("scores", {}) if cards else {}
            rows.append(
                {
                    "adapter": adapter.name,
                    "state": adapter.state,
                    "gate": cards[0].verdict if cards else None,
                    "base": scores.get("base"),
                    "score": scores.get("adapter"),
                    "served": scores.get("served"),
                    "coverage": cards[0].body.get("coverage") if cards else None,
                    "created": adapter.created,
                }
            )
    show(rows, as_json, "No adapters yet: `nightschool night` trains them.")


@click.command(epilog="\b\nExamples:\n  nightschool events --limit 5\n  nightschool events TASK")
@click.argument("subject", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@JSON_OPTION
@click.pass_context
@failing_clearly
def events(ctx: click.Context, subject: str | None, limit: int, as_json: bool) -> None:
    """Who changed what, when and why; newest first. SUBJECT is a task, adapter or rollout."""
    with context_of(ctx) as context:
        rows = [
            {
                "time": event.time,
                "actor": event.actor,
                "what": event.what,
                "subject": event.subject,
                "why": event.why,
            }
            for event in context.registry.events(subject, limit)
        ]
    show(rows, as_json, "Nothing has happened yet.")
