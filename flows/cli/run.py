"""Commands that run something: the stack, the demo, a night, the gateway, the registry."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from flows.cli.common import JSON_OPTION, failing_clearly, settings_of


@click.command(epilog="\b\nExample:\n  nightschool up --config production.toml")
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
    epilog="\b\nExamples:\n  nightschool night --plan\n  nightschool night --task invoice-fields"
)
@click.option("--task", "only", help="Train this task only.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be trained, and stop.")
@JSON_OPTION
@click.pass_context
@failing_clearly
def night(ctx: click.Context, only: str | None, plan_only: bool, as_json: bool) -> None:
    """Run the night now, whatever the time: ingest, discover, train, judge, open rollouts.

    Needs a Prefect server (`nightschool up`), where the run can be watched.
    """
    from datetime import timedelta

    from flows.cli.common import show
    from flows.learning import discover_tasks, plan_night
    from flows.stack.services import prefect_environment
    from flows.wiring import open_context
    from infra.calls.record import utc_now

    settings = settings_of(ctx)
    os.environ.update(prefect_environment(settings))
    if plan_only:
        with open_context(settings) as context:
            deadline = utc_now() + timedelta(hours=4)
            found = discover_tasks(context)
            if only is not None:
                context.registry.task(only)
            plan = plan_night(context, found, only=only, deadline=deadline)
        rows = [
            {"task": run.task_id, "steps": run.steps, "seconds": run.estimated_seconds}
            | {"why": run.reason}
            for run in plan.runs
        ] + [{"task": t, "steps": 0, "seconds": 0.0, "why": why} for t, why in plan.skipped]
        show(rows, as_json, "No tasks yet: nothing to train.")
        return
    with open_context(settings) as context:
        if only is not None:
            context.registry.task(only)
        context.orchestrator().check()
    from flows.night import night as night_flow

    night_flow(reason="by hand", only=only, by_hand=True)


@click.command(epilog="\b\nExample:\n  nightschool gateway --config gateway.toml")
@click.pass_context
@failing_clearly
def gateway(ctx: click.Context) -> None:
    """Run the gateway alone, in this process."""
    settings_of(ctx)
    os.execv(sys.executable, [sys.executable, "-m", "serving.gateway"])


@click.command(
    epilog="\b\nExamples:\n  nightschool registry --config registry.toml\n"
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
