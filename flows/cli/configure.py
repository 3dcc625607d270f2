"""Commands about the set-up: settings and schema."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.cli.common import (
    AS_OPTION,
    JSON_OPTION,
    WHY_OPTION,
    failing_clearly,
    note_order,
    settings_of,
)


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


FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(
    epilog="\b\nExamples:\n  nightschool db upgrade\n  nightschool db backup night.jsonl.zst"
)
def db() -> None:
    """The database: its schema, its backup."""


@db.command(epilog="\b\nExample:\n  nightschool db upgrade")
@click.pass_context
@failing_clearly
def upgrade(ctx: click.Context) -> None:
    """Bring the tables to this release's form. Safe to repeat, and to run from several machines."""
    from infra.database.open import open_database

    database = open_database(settings_of(ctx).database)
    click.echo(f"{database}: revision {database.upgrade()}")


@db.command(epilog="\b\nExample:\n  nightschool db backup night.jsonl.zst")
@click.argument("file", type=FILE)
@click.pass_context
@failing_clearly
def backup(ctx: click.Context, file: Path) -> None:
    """Write all of the database to FILE, while everything runs. Also from SQLite to PostgreSQL."""
    from infra.database import backup
    from infra.database.open import open_database

    database = open_database(settings_of(ctx).database)
    click.echo(_told(f"{database}: written to {file}", backup.backup(database, file)))


@db.command(epilog="\b\nExample:\n  nightschool db restore night.jsonl.zst")
@click.argument("file", type=FILE)
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def restore(ctx: click.Context, file: Path, why: str, actor: str) -> None:
    """Fill an empty database from FILE: all of it or nothing. One with rows is left alone."""
    from infra.database import backup
    from infra.database.open import open_database

    database = open_database(settings_of(ctx).database)
    counts = backup.restore(database, file)
    note_order(database, "backup.restored", file.name, actor=actor, why=why)
    click.echo(_told(f"{database}: restored from {file}", counts))


def _told(what: str, counts: dict[str, int]) -> str:
    rows = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{what} ({rows or 'no rows'})"
