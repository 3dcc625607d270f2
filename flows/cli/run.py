"""Commands that run something: the stack, the demo, a night, the gateway, the registry."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli.common import (
    AS_OPTION,
    JSON_OPTION,
    WHY_OPTION,
    failing_clearly,
    note_order,
    settings_of,
)

EMPTY_PLAN = (
    "No tasks yet: nothing to train. Logs are taken in each quarter of an hour, and first of all by the "
    "night itself."
)

if TYPE_CHECKING:
    from infra.settings.model import Settings


@click.command(epilog="\b\nExample:\n  nightschool --config production.toml up")
@click.pass_context
@failing_clearly
def up(ctx: click.Context) -> None:
    """Start everything on this machine, print the addresses, and run until Ctrl-C."""
    from flows.stack.up import run_until_stopped

    run_until_stopped(settings_of(ctx), click.echo)


@click.command(
    epilog="\b\nExamples:\n  nightschool demo\n  nightschool demo --keep-running --port-base 9300"
)
@click.option("--keep-running", is_flag=True, help="Leave the stack up at the end, until Ctrl-C.")
@click.option(
    "--port-base",
    type=click.IntRange(1024, 65500),
    default=8300,
    show_default=True,
    help="The demo takes this port and the six after it.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Emptied at the start; holds everything the demo makes.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides the traffic.")
@failing_clearly
def demo(keep_running: bool, port_base: int, folder: Path, seed: int) -> None:
    """Play one day, one night and the next day on real input.

    Ends with a summary on the screen and in FOLDER/summary.json. Status 0 only if an adapter was
    promoted and a deliberately bad one was rolled back.
    """
    from flows.demo.script import play_demo

    sys.exit(play_demo(folder, port_base, seed, keep_running=keep_running))


@click.command(
    epilog="\b\nExamples:\n  nightschool night --plan\n  nightschool night --plan --tonight --json\n"
    "  nightschool night --task invoice-fields --why 'new price list'"
)
@click.option("--task", "only", help="Train this task only.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be trained, and stop.")
@click.option(
    "--tonight", is_flag=True, help="With --plan: for the configured night, not for four hours now."
)
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def night(
    ctx: click.Context,
    only: str | None,
    plan_only: bool,
    tonight: bool,
    why: str,
    actor: str,
    as_json: bool,
) -> None:
    """Run the night now, whatever the time: ingest, discover, train, judge, open rollouts.

    Needs a Prefect server (`nightschool up`), where the run can be watched.
    """
    from flows.stack.services import prefect_environment
    from flows.wiring import open_context

    if tonight and not plan_only:
        raise click.UsageError(
            "--tonight only plans: add --plan, or leave it out to start the night now"
        )
    settings = settings_of(ctx)
    os.environ.update(prefect_environment(settings))
    if plan_only:
        _show_plan(settings, only, tonight, as_json)
        return
    with open_context(settings) as context:
        if only is not None:
            context.registry.task(only)
        context.orchestrator().check()
        note_order(context.database, "night.asked", only or "all", actor=actor, why=why)
    from flows.night import night as night_flow

    night_flow(reason=why, only=only, by_hand=True)


def _show_plan(settings: Settings, only: str | None, tonight: bool, as_json: bool) -> None:
    from datetime import timedelta

    from flows.cli.common import show
    from flows.holding import KILLED_SECONDS, NIGHT, hold
    from flows.learning import discover_tasks
    from flows.planning import plan_night, plan_rows, plan_totals
    from flows.wiring import open_context
    from infra.calls.record import utc_now
    from trainers.plan import night_window

    start = utc_now()
    deadline = start + timedelta(hours=4)
    if tonight:
        opens, deadline = night_window(settings.night, start)
        start = max(opens, start)
    with (
        open_context(settings) as context,
        # It freezes data sets, as a night does.
        hold(context.database, NIGHT, context.holder, wait_seconds=KILLED_SECONDS),
    ):
        found = discover_tasks(context)
        if only is not None:
            context.registry.task(only)
        made = plan_night(context, found, only=only, deadline=deadline, start=start)
    show(plan_rows(made), as_json, EMPTY_PLAN)
    if not as_json and made.runs:
        totals = plan_totals(made, settings.training.workers)
        click.echo(
            f"{totals['workers']} workers are done after {totals['ends_after_seconds']:.0f} s; no "
            f"layout ends before {totals['no_layout_ends_before_seconds']:.0f} s. "
            f"The night ends at {deadline:%H:%M} UTC."
        )


@click.command(epilog="\b\nExample:\n  nightschool --config gateway.toml gateway")
@click.pass_context
@failing_clearly
def gateway(ctx: click.Context) -> None:
    """Run the gateway alone, in this process."""
    settings_of(ctx)
    os.execv(sys.executable, [sys.executable, "-m", "serving.gateway"])


@click.command(
    epilog="\b\nExamples:\n  nightschool --config registry.toml registry\n"
    "  nightschool keys create --role operate    a key that may read it"
)
@click.pass_context
@failing_clearly
def registry(ctx: click.Context) -> None:
    """Run the registry's HTTP read API alone, in this process.

    Describes itself at /openapi.json. Mirrors lineage to [registry] mlflow_uri, if that is set.
    """
    settings_of(ctx)
    os.execv(sys.executable, [sys.executable, "-m", "serving.registry.reading"])
