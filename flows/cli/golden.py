"""The commands about golden cases: prompts whose right answer a person pinned."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.cli.common import AS_OPTION, JSON_OPTION, WHY_OPTION, context_of, failing_clearly, show

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(
    epilog="\b\nExamples:\n  nightschool golden add invoice-fields --file case.json --why 'audited'\n"
    "  nightschool golden list invoice-fields"
)
def golden() -> None:
    """Cases whose right answer is pinned: never trained on, and no adapter may lose one."""


@golden.command(
    "add",
    epilog="\b\nExamples:\n"
    "  nightschool golden add invoice-fields --call 0197f1a2-3b4c-7d5e-8f90-a1b2c3d4e5f6\n"
    "  nightschool golden add invoice-fields --file case.json --why 'the audit of May'",
)
@click.argument("task")
@click.option("--call", "call_id", help="A logged call: its prompt, and its right answer.")
@click.option("--answer", type=FILE, help="The right answer to --call, an OpenAI message in JSON.")
@click.option("--file", type=FILE, help='JSON: {"request": {...}, "answer": {...}}.')
@click.option(
    "--least",
    default=1.0,
    show_default=True,
    help="Least score that is right; lower for free text.",
)
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def add(
    ctx: click.Context,
    task: str,
    call_id: str | None,
    answer: Path | None,
    file: Path | None,
    least: float,
    why: str,
    actor: str,
    as_json: bool,
) -> None:
    """Pin the right answer to a prompt of TASK. What is pinned is stored without personal data."""
    from trainers.data_sets.golden import case_from_call, case_from_json, pin, read_object

    if (call_id is None) == (file is None) or (answer is not None and call_id is None):
        raise click.UsageError(
            "give --call ID (with --answer FILE if it was answered wrongly) or --file"
        )
    with context_of(ctx) as context:
        context.registry.task(task)
        if file is not None:
            case = case_from_json(
                context.settings, task, file.read_bytes(), least=least, why=why, by=actor
            )
        else:
            given = None if answer is None else read_object(answer.read_bytes())
            case = case_from_call(
                context.store,
                context.database,
                task,
                call_id or "",
                answer=given,
                least=least,
                why=why,
                by=actor,
            )
        case = pin(context.store, context.database, case)
    if as_json:
        click.echo(json.dumps(case.to_dict()))
    else:
        click.echo(f"{task}: golden case {case.id}")


@golden.command("list", epilog="\b\nExample:\n  nightschool golden list invoice-fields --json")
@click.argument("task", required=False)
@JSON_OPTION
@click.pass_context
@failing_clearly
def list_cases(ctx: click.Context, task: str | None, as_json: bool) -> None:
    """The golden cases of TASK, or of all tasks."""
    from trainers.data_sets.golden import golden_cases

    with context_of(ctx) as context:
        if task is not None:
            context.registry.task(task)
        cases = golden_cases(context.store, task)
    rows = [
        case.to_dict()
        if as_json
        else {
            "task": case.task_id,
            "id": case.id,
            "asked": str(case.request["messages"][-1].get("content") or "")[:40].strip(),
            "least": case.least,
            "by": case.by,
            "why": case.why,
        }
        for case in cases
    ]
    show(rows, as_json, "No golden cases: `nightschool golden add` pins one.")


@golden.command(
    "remove", epilog="\b\nExample:\n  nightschool golden remove invoice-fields 3f2a91c04b7d0123..."
)
@click.argument("task")
@click.argument("case")
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def remove(ctx: click.Context, task: str, case: str, why: str, actor: str) -> None:
    """Take the golden case CASE (its id) of TASK away."""
    from trainers.data_sets.golden import take_away

    with context_of(ctx) as context:
        take_away(context.store, context.database, task, case, why=why, by=actor)
    click.echo(f"{task}: {case} is no golden case any more")
