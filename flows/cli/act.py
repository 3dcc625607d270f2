"""Commands that change something."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from flows.cli.common import FAILED, JSON_OPTION, USAGE, context_of, fail, failing_clearly, show


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
@click.option("--why", default="by hand", show_default=True, help="Kept with the event.")
@JSON_OPTION
@click.pass_context
@failing_clearly
def rollback(ctx: click.Context, task: str, to: str | None, why: str, as_json: bool) -> None:
    """Take back what was brought in last for TASK: an open canary, else the champion.

    Every gateway follows within a second. A rejected adapter is never rolled out again.
    """
    from infra.calls.record import utc_now
    from infra.notify.outbox import deliver
    from serving.rollout.controller import rollback as take_back

    with context_of(ctx) as context:
        route = take_back(
            context.registry,
            task,
            to,
            actor=os.environ.get("USER", "operator"),
            why=why,
            channels=tuple(context.channels),
        )
        deliver(context.database, context.channels, utc_now())
    if as_json:
        click.echo(json.dumps(route.to_json()))
    else:
        click.echo(f"{task} is answered by {route.champion} (route version {route.version})")


@click.command(epilog="\b\nExamples:\n  nightschool retrain invoice-fields\n  nightschool retrain")
@click.argument("task", required=False)
@click.option("--why", default="by hand", show_default=True)
@click.pass_context
@failing_clearly
def retrain(ctx: click.Context, task: str | None, why: str) -> None:
    """Ask Prefect to train TASK (or all tasks) now; prints the flow run's address."""
    from flows.stack.services import prefect_ui_url

    with context_of(ctx) as context:
        if task is not None:
            context.registry.task(task)
        run = context.orchestrator().start("retrain", {"task": task, "reason": why})
        click.echo(f"{prefect_ui_url(context.settings)}/runs/flow-run/{run.id}")


@click.group(epilog="\b\nExample:\n  nightschool keys create --tenant shop --role call")
def keys() -> None:
    """API keys of the gateway."""


@keys.command("create")
@click.option("--tenant", default="default", show_default=True)
@click.option(
    "--role", type=click.Choice(["call", "operate", "admin"]), default="call", show_default=True
)
@click.option("--label", default="", help="What the key is for.")
@click.pass_context
@failing_clearly
def create_key(ctx: click.Context, tenant: str, role: Any, label: str) -> None:
    """Create a key and print it, once: only its hash is kept."""
    from serving.registry import keys as api_keys

    with context_of(ctx) as context:
        try:
            key = api_keys.create_key(context.database, tenant=tenant, role=role, label=label)
        except ValueError as error:
            fail(str(error), USAGE)
        click.echo(key)


@keys.command("list")
@JSON_OPTION
@click.pass_context
@failing_clearly
def list_keys(ctx: click.Context, as_json: bool) -> None:
    """The keys by the start of their hash."""
    from serving.registry import keys as api_keys

    with context_of(ctx) as context:
        rows = [
            {
                "hash": key.hash[:12],
                "tenant": key.tenant,
                "role": key.role,
                "label": key.label,
                "created": key.created,
                "revoked": key.revoked,
            }
            for key in api_keys.list_keys(context.database)
        ]
    show(rows, as_json, "No keys: `nightschool keys create` makes one.")


@keys.command("revoke")
@click.argument("start_of_hash")
@click.pass_context
@failing_clearly
def revoke_key(ctx: click.Context, start_of_hash: str) -> None:
    """Revoke the key whose hash starts so. Gateways refuse it within a second."""
    from serving.registry import keys as api_keys

    with context_of(ctx) as context:
        key = api_keys.revoke_key(context.database, start_of_hash)
        click.echo(f"revoked {key.hash[:12]} of {key.tenant}")


@click.group(epilog="\b\nExample:\n  nightschool notify test")
def notify() -> None:
    """Slack and the other channels."""


@notify.command("test")
@click.pass_context
@failing_clearly
def test_message(ctx: click.Context) -> None:
    """Send a test message to every configured channel, and say how each fared."""
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
        broken = 0
        for name, channel in context.channels.items():
            try:
                channel.send(message)
                click.echo(f"{name}: sent")
            except Exception as error:  # noqa: BLE001  a test reports whatever goes wrong
                broken += 1
                click.echo(f"{name}: {error}")
    if broken:
        fail(f"{broken} of the channels do not work", FAILED)
