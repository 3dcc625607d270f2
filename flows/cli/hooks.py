"""``nightschool hooks``: who may send webhooks, and what they asked for that waits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from flows.cli.common import (
    AS_OPTION,
    JSON_OPTION,
    USAGE,
    context_of,
    fail,
    failing_clearly,
    show,
)

if TYPE_CHECKING:
    from flows.hooks.secrets import SenderSecrets
    from flows.wiring import Context


@click.group(
    epilog="\b\nExamples:\n  nightschool hooks secrets add ci\n  nightschool hooks waiting --json"
)
def hooks() -> None:
    """Webhooks in: the senders' secrets, and what waits to be done."""


@hooks.command("waiting", epilog="\b\nExample:\n  nightschool hooks waiting --json")
@JSON_OPTION
@click.pass_context
@failing_clearly
def waiting(ctx: click.Context, as_json: bool) -> None:
    """The oldest hundred messages that are kept until they can be done."""
    from flows.hooks.receipts import Receipts

    with context_of(ctx) as context:
        kept = Receipts(context.database).kept()
    rows = [
        {"received": one.received, "sender": one.sender, "hook": one.hook, "id": one.message_id}
        for one in kept
    ]
    show(rows, as_json, "Nothing waits.")


@hooks.group(
    epilog="\b\nExamples:\n  nightschool hooks secrets add ci\n  nightschool hooks secrets rotate ci\n"
    "  nightschool hooks secrets list"
)
def secrets() -> None:
    """Secrets that senders sign with: shown once, kept encrypted, two valid while one takes over."""


@secrets.command("add", epilog="\b\nExample:\n  nightschool hooks secrets add ci")
@click.argument("sender")
@AS_OPTION
@click.pass_context
@failing_clearly
def add(ctx: click.Context, sender: str, actor: str) -> None:
    """Make SENDER's first secret and print it, once."""
    with context_of(ctx) as context:
        click.echo(
            _of(context).add(_name(sender), standard=_standard(context, sender), actor=actor)
        )


@secrets.command(
    "rotate", epilog="\b\nExample:\n  nightschool hooks secrets rotate ci --overlap-hours 2"
)
@click.argument("sender")
@click.option(
    "--overlap-hours",
    type=click.FloatRange(0, 24 * 30),
    default=24.0,
    show_default=True,
    help="How long the old one is still taken.",
)
@AS_OPTION
@click.pass_context
@failing_clearly
def rotate(ctx: click.Context, sender: str, overlap_hours: float, actor: str) -> None:
    """Make SENDER's next secret and print it, once; the old one ends after the overlap."""
    with context_of(ctx) as context:
        made = _of(context).rotate(
            _name(sender),
            standard=_standard(context, sender),
            overlap_seconds=3600 * overlap_hours,
            actor=actor,
        )
        click.echo(made)


@secrets.command(
    "revoke", epilog="\b\nExample:\n  nightschool hooks secrets revoke ci 3fa9c1d2e4b5"
)
@click.argument("sender")
@click.argument("secret_id", metavar="ID")
@click.option("--why", default="revoked", show_default=True, help="Kept with the event.")
@AS_OPTION
@click.pass_context
@failing_clearly
def revoke(ctx: click.Context, sender: str, secret_id: str, why: str, actor: str) -> None:
    """End a secret at once; receivers refuse it within a second."""
    with context_of(ctx) as context:
        _of(context).revoke(sender, secret_id, actor=actor, why=why)
    click.echo(f"revoked {secret_id} of {sender}")


@secrets.command("list", epilog="\b\nExample:\n  nightschool hooks secrets list --json")
@JSON_OPTION
@click.pass_context
@failing_clearly
def list_secrets(ctx: click.Context, as_json: bool) -> None:
    """The valid secrets by their ids, and those that stand in the settings; never the secrets."""
    with context_of(ctx) as context:
        rows = [
            {"sender": one.sender, "id": one.id, "created": one.created, "expires": one.expires}
            for one in _of(context).list()
        ]
        for name, several in sorted(context.settings.hooks.secrets.items()):
            rows += [
                {"sender": name, "id": "(settings)", "created": None, "expires": None}
                for _ in several
            ]
    show(rows, as_json, "No senders: `nightschool hooks secrets add NAME` makes one.")


def _of(context: Context) -> SenderSecrets:
    from flows.hooks.secrets import SenderSecrets
    from infra.signing_keys import signing_keys

    return SenderSecrets(context.database, signing_keys(context.settings.hooks))


def _standard(context: Context, sender: str) -> bool:
    return context.settings.hooks.sender(sender).scheme == "standard"


def _name(sender: str) -> str:
    from infra.settings.operating import SENDER_NAME

    if not re.fullmatch(SENDER_NAME, sender):
        fail("a sender's name has letters, digits, '.', '_' and '-', 64 at most", USAGE)
    return sender
