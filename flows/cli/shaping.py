"""Commands that say which calls make a task: `nightschool tasks merge` and `split`."""

from __future__ import annotations

from typing import Any

import click

from flows.cli.common import (
    AS_OPTION,
    JSON_OPTION,
    USAGE,
    WHY_OPTION,
    context_of,
    fail,
    failing_clearly,
    show,
)
from flows.cli.data import tasks

__all__ = ["tasks"]

_TYPICAL_CHARACTERS = 60
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show what would come of it.")


@tasks.command(
    epilog="\b\nExamples:\n  nightschool tasks merge invoice-fields invoice-lines --dry-run\n"
    "  nightschool tasks merge --undo invoice-lines"
)
@click.argument("task")
@click.argument("others", nargs=-1, metavar="[OTHER]...")
@click.option("--undo", is_flag=True, help="Let TASK, which was merged, stand by itself again.")
@_DRY_RUN
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def merge(
    ctx: click.Context,
    task: str,
    others: tuple[str, ...],
    undo: bool,
    dry_run: bool,
    why: str,
    actor: str,
    as_json: bool,
) -> None:
    """Make the calls of every OTHER those of TASK, from now on and night after night.

    TASK keeps its id, adapters and route. The teacher answers an OTHER's calls until an adapter of TASK
    has learned from them too; its own adapters answer no more. Refused while either has an open rollout.
    """
    from flows.shaping import merge as merge_tasks

    if bool(others) == undo:
        fail("name the task that stays, then those whose calls become its own", USAGE)
    with context_of(ctx) as context:
        if undo:
            if dry_run:
                fail("--undo has no dry run: merging again takes it back", USAGE)
            context.registry.separate_task(task, actor=actor, why=why)
            click.echo(f"{task} stands by itself again; the teacher answers it")
            return
        rows = merge_tasks(context, task, list(others), actor=actor, why=why, dry_run=dry_run)
    _tell([part.row() for part in rows], as_json, dry_run)


@tasks.command(
    epilog="\b\nExamples:\n  nightschool tasks split invoice-fields --by cluster --dry-run\n"
    "  nightschool tasks split support --by signature\n"
    "  nightschool tasks split invoice-fields --by cluster --parts 3"
)
@click.argument("task")
@click.option(
    "--by",
    type=click.Choice(["tag", "signature", "cluster"]),
    required=True,
    help="tag: along the tags of merged tasks; signature: by tools, form and system prompt; "
    "cluster: by what is asked.",
)
@click.option("--parts", type=click.IntRange(2, 50), help="How many, by cluster.")
@_DRY_RUN
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def split(
    ctx: click.Context,
    task: str,
    by: Any,
    parts: int | None,
    dry_run: bool,
    why: str,
    actor: str,
    as_json: bool,
) -> None:
    """Make several tasks of TASK, from now on and night after night.

    One part keeps the id, the adapters and the route; the teacher answers the others until they have
    adapters of their own. Parts by cluster are pinned. `merge` takes it back. Refused while TASK has an
    open rollout.
    """
    from flows.shaping import split as split_task

    if parts is not None and by != "cluster":
        fail("--parts goes with --by cluster alone", USAGE)
    with context_of(ctx) as context:
        rows = split_task(context, task, by, parts, actor=actor, why=why, dry_run=dry_run)
    _tell([part.row() for part in rows], as_json, dry_run)


def _tell(rows: list[dict[str, Any]], as_json: bool, dry_run: bool) -> None:
    if not as_json:
        for row in rows:
            row["e.g."] = row["e.g."][:_TYPICAL_CHARACTERS]
    show(rows, as_json, "")
    if dry_run and not as_json:
        click.echo("Nothing was changed: this is what would come of it.")
