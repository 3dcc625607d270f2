"""Commands about the set-up: settings and schema."""

from __future__ import annotations

import json

import click

from flows.cli.common import JSON_OPTION, failing_clearly, settings_of


@click.command(epilog="\b\nExamples:\n  nightschool config\n  nightschool config --json")
@JSON_OPTION
@click.pass_context
@failing_clearly
def config(ctx: click.Context, as_json: bool) -> None:
    """Show the effective settings and where each came from. Secrets are never shown."""
    from infra.settings.sources import origins

    rows = origins(ctx.obj)
    if as_json:
        click.echo(
            json.dumps(
                [{"key": r.key, "value": r.value, "source": r.source} for r in rows], indent=1
            )
        )
        return
    width = max(len(row.key) for row in rows)
    for row in rows:
        click.echo(f"{row.key:<{width}}  {row.value}  ({row.source})  {row.description}".rstrip())


@click.group(epilog="\b\nExample:\n  nightschool db upgrade")
def db() -> None:
    """The database's schema."""


@db.command()
@click.pass_context
@failing_clearly
def upgrade(ctx: click.Context) -> None:
    """Bring the tables to this release's form. Safe to repeat, and to run from several machines."""
    from infra.database.open import open_database

    database = open_database(settings_of(ctx).database)
    click.echo(f"{database}: revision {database.upgrade()}")
