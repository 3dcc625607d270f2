"""The command about drift: what changed in a task's calls, by how much, and which calls show it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flows.cli.common import JSON_OPTION, context_of, failing_clearly

if TYPE_CHECKING:
    from flows.drift_inquiry import Inquiry

EXAMPLES_SHOWN = 3


@click.command(
    epilog="\b\nExamples:\n  nightschool drift invoice-fields\n"
    "  nightschool drift invoice-fields --days 7 --all\n"
    "  nightschool drift invoice-fields --json"
)
@click.argument("task")
@click.option(
    "--days",
    type=click.FloatRange(0, 365, min_open=True),
    help="Compare the calls of so many days. Default: [watch] window_seconds.",
)
@click.option("--all", "everything", is_flag=True, help="Show the columns that did not drift too.")
@JSON_OPTION
@click.pass_context
@failing_clearly
def drift(
    ctx: click.Context, task: str, days: float | None, everything: bool, as_json: bool
) -> None:
    """Compare TASK's newest calls with what its champion learned from, and with the days before.

    Numbers are measured in standard deviations (Wasserstein distance), categories by Jensen-Shannon
    distance. Nothing is asked for by this: `watch` does, once in [watch] cooldown_seconds.
    """
    from flows.drift_inquiry import inquire

    with context_of(ctx) as context:
        found = inquire(context, task, days=days)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1, default=str))
    else:
        _print(found, everything)


def _print(found: Inquiry, everything: bool) -> None:
    click.echo(
        f"{found.task}, answered by {found.champion}: "
        f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M}"
    )
    names = {"training": "what it learned from", "before": "the days before"}
    for look in found.looks:
        drifted = f"{len(look['drifted'])} of {len(look['columns'])} columns drifted"
        click.echo(
            f"against {names[look['against']]} ({look['compared_with']} calls; now {look['calls']}): "
            f"{drifted if look['drifted'] else 'no drift'}"
        )
        for finding in look["findings"]:
            click.echo(f"  {finding['told']}")
            for example in finding["examples"][:EXAMPLES_SHOWN]:
                click.echo(f"    {example['call']}: {example['prompt']} -> {example['answer']}")
        if everything:
            for name, column in look["columns"].items():
                if name not in look["drifted"]:
                    click.echo(f"  {name} {column['distance']:.2f} (limit {column['limit']:.2f})")
        click.echo(f"  report: {look['report']}")
    told = found.last_told
    click.echo(f"last told: {told['time']:%Y-%m-%d %H:%M}, {told['why']}" if told else "never told")
    if found.cools_down_until:
        click.echo(f"nothing more is told before {found.cools_down_until:%Y-%m-%d %H:%M}")
    click.echo(f"retraining after drift: {found.asks}")
