"""``nightschool keys``: who may call the gateway, as what, and how much."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

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

NONE = "none"


class _Limit(click.ParamType):
    """A number, or ``none`` to take the limit away."""

    name = "number|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        if isinstance(value, int) or value == NONE:
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {NONE}", param, ctx)


class _Moment(click.ParamType):
    """An ISO 8601 time with its zone, or ``none``."""

    name = "time|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime | str:
        if isinstance(value, datetime) or value == NONE:
            return value
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time such as 2030-01-31T12:00:00Z", param, ctx)


def _limits(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--expires", type=_Moment(), help="Such as 2030-01-31T12:00:00Z; default: never."
        ),
        click.option(
            "--tokens-per-minute", type=_Limit(), help="At each gateway; default: unlimited."
        ),
        click.option(
            "--requests-per-minute", type=_Limit(), help="At each gateway; default: unlimited."
        ),
    ):
        command = option(command)
    return command


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was asked for; ``none`` is None, what was left out is not there."""
    return {
        name: None if value == NONE else value
        for name, value in options.items()
        if value is not None
    }


@click.group(
    epilog="\b\nExamples:\n  nightschool keys create --tenant shop --role call\n"
    "  nightschool keys limit 3f2a9c0e --requests-per-minute 600"
)
def keys() -> None:
    """API keys of the gateway."""


@keys.command(
    "create",
    epilog="\b\nExample:\n  nightschool keys create --tenant shop --requests-per-minute 600",
)
@click.option("--tenant", default="default", show_default=True)
@click.option(
    "--role",
    type=click.Choice(["call", "operate", "admin"]),
    default="call",
    show_default=True,
    help="call: models and feedback; operate: also metrics and every path of the teacher's server "
    "but an organization's; admin: those too.",
)
@click.option("--label", default="", help="What the key is for.")
@_limits
@AS_OPTION
@click.pass_context
@failing_clearly
def create_key(
    ctx: click.Context, tenant: str, role: Any, label: str, actor: str, **limits: Any
) -> None:
    """Create a key and print it, once: only its hash is kept."""
    from serving.registry import keys as api_keys

    with context_of(ctx) as context:
        try:
            key = api_keys.create_key(
                context.database,
                tenant=tenant,
                role=role,
                label=label,
                actor=actor,
                **_given(limits),
            )
        except ValueError as error:
            fail(str(error), USAGE)
        click.echo(key)


@keys.command("list", epilog="\b\nExample:\n  nightschool keys list --json")
@JSON_OPTION
@click.pass_context
@failing_clearly
def list_keys(ctx: click.Context, as_json: bool) -> None:
    """The keys by the start of their hash."""
    from serving.registry import keys as api_keys

    with context_of(ctx) as context:
        rows = [
            {
                "hash": key.id,
                "tenant": key.tenant,
                "role": key.role,
                "label": key.label,
                "requests_per_minute": key.requests_per_minute,
                "tokens_per_minute": key.tokens_per_minute,
                "created": key.created,
                "expires": key.expires,
                "revoked": key.revoked,
            }
            for key in api_keys.list_keys(context.database)
        ]
    show(rows, as_json, "No keys: `nightschool keys create` makes one.")


@keys.command(
    "limit",
    epilog="\b\nExamples:\n  nightschool keys limit 3f2a9c0e --tokens-per-minute 200000\n"
    "  nightschool keys limit 3f2a9c0e --expires none",
)
@click.argument("start_of_hash")
@_limits
@AS_OPTION
@click.pass_context
@failing_clearly
def limit_key(ctx: click.Context, start_of_hash: str, actor: str, **limits: Any) -> None:
    """Change the limits of the key whose hash starts so; `none` takes one away.

    Gateways follow within a second.
    """
    from serving.registry import keys as api_keys

    changes = _given(limits)
    if not changes:
        fail("say which limit to change: see nightschool keys limit --help", USAGE)
    with context_of(ctx) as context:
        try:
            key = api_keys.limit_key(context.database, start_of_hash, changes, actor=actor)
        except ValueError as error:
            fail(str(error), USAGE)
        now = ", ".join(f"{name} {getattr(key, name) or NONE}" for name in changes)
        click.echo(f"{key.id} of {key.tenant}: {now}")


@keys.command("revoke", epilog="\b\nExample:\n  nightschool keys revoke 3f2a9c0e")
@click.argument("start_of_hash")
@AS_OPTION
@click.pass_context
@failing_clearly
def revoke_key(ctx: click.Context, start_of_hash: str, actor: str) -> None:
    """Revoke the key whose hash starts so. Gateways refuse it within a second."""
    from serving.registry import keys as api_keys

    with context_of(ctx) as context:
        key = api_keys.revoke_key(context.database, start_of_hash, actor=actor)
        click.echo(f"revoked {key.id} of {key.tenant}")
