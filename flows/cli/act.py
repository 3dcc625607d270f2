"""Commands that change something."""

from __future__ import annotations

import json

import click

from flows.cli.common import (
    AS_OPTION,
    FAILED,
    JSON_OPTION,
    NOT_FOUND,
    WHY_OPTION,
    context_of,
    fail,
    failing_clearly,
    note_order,
    show,
)


@click.command(
    epilog="\b\nExamples:\n  nightschool rollback invoice-fields\n"
    "  nightschool rollback invoice-fields --to teacher --why 'wrong totals'"
)
@click.argument("task")
@click.option(
    "--to",
    help="An earlier champion by its name or the start of its digest, or teacher. "
    "Default: the previous champion.",
)
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def rollback(
    ctx: click.Context, task: str, to: str | None, why: str, actor: str, as_json: bool
) -> None:
    """Take back what was brought in last for TASK: an open canary, else the champion.

    Every gateway follows within a second. A rejected adapter is never rolled out again.
    """
    from serving.rollout.controller import rollback as take_back

    with context_of(ctx) as context:
        route = take_back(
            context.registry,
            task,
            to,
            actor=actor,
            why=why,
            channels=tuple(context.channels),
        )
        context.deliver_messages()
    if as_json:
        click.echo(json.dumps(route.to_json()))
    else:
        click.echo(f"{task} is answered by {route.champion} (route version {route.version})")


@click.command(epilog="\b\nExamples:\n  nightschool retrain invoice-fields\n  nightschool retrain")
@click.argument("task", required=False)
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def retrain(ctx: click.Context, task: str | None, why: str, actor: str) -> None:
    """Ask Prefect to train TASK (or all tasks) now; prints the flow run's address."""
    from flows.stack.services import prefect_ui_url

    with context_of(ctx) as context:
        if task is not None:
            context.registry.task(task)
        wanted = {"task": task, "reason": why, "asked_by": actor}
        run = context.orchestrator().start("retrain", wanted)
        note_order(
            context.database,
            "retrain.asked",
            task or "all",
            actor=actor,
            why=why,
            flow_run=run.id,
        )
        click.echo(f"{prefect_ui_url(context.settings)}/runs/flow-run/{run.id}")


@click.command(epilog="\b\nExamples:\n  nightschool gc --dry-run\n  nightschool gc --json")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why the rest stays.")
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def gc(ctx: click.Context, dry_run: bool, why: str, actor: str, as_json: bool) -> None:
    """Clear away what is past its time ([retention]): adapters, data sets, logs, run folders.

    What a route or an open rollout names is never touched. A thing is marked first and goes after
    [retention] grace_seconds; `nightschool up` does this once a day.
    """
    from flows.housekeeping import housekeep

    with context_of(ctx) as context:
        if not dry_run:
            note_order(context.database, "gc.asked", "all", actor=actor, why=why)
        found = housekeep(context, dry_run=dry_run)
    rows = [vars(entry) for entry in found.done if as_json or dry_run or entry.outcome != "kept"]
    show(rows, as_json, "Nothing to clear away.")


@click.group(epilog="\b\nExample:\n  nightschool notify test")
def notify() -> None:
    """Slack and the other channels."""


@notify.command(
    "test",
    epilog="\b\nExamples:\n  nightschool notify test\n  nightschool notify test --channel slack",
)
@click.option(
    "--channel",
    "only",
    help="This one alone: console, slack, webhook or apprise:..., as the test of all names them.",
)
@click.pass_context
@failing_clearly
def test_message(ctx: click.Context, only: str | None) -> None:
    """Send a test message to every configured channel, or to one, and say how each fared."""
    from infra.notify.message import Message

    with context_of(ctx) as context:
        message = Message(
            key="test",
            topic="test",
            title="Night School: a test message",
            what="Somebody ran `nightschool notify test`.",
            why="To see that messages arrive.",
            evidence={},
            link="",
            undo="",
        )
        if only is not None and only not in context.channels:
            there = ", ".join(context.channels)
            fail(f"no channel {only!r} is set up in [notify]: there are {there}", NOT_FOUND)
        broken = 0
        for name, channel in context.channels.items():
            if only not in (None, name):
                continue
            try:
                channel.send(message)
                click.echo(f"{name}: sent")
            except Exception as error:  # noqa: BLE001  a test reports whatever goes wrong
                broken += 1
                click.echo(f"{name}: {error}")
    if broken:
        fail(f"{broken} of the channels do not work", FAILED)
