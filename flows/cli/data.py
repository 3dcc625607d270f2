"""Commands about what is learned from: the tasks and the data sets made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.common import (
    AS_OPTION,
    JSON_OPTION,
    NOT_FOUND,
    USAGE,
    WHY_OPTION,
    context_of,
    fail,
    failing_clearly,
    show,
)
from infra.tasks.joined import merged_into

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flows.wiring import Context
    from serving.registry.records import Route, Task
    from trainers.data_sets.versions import DatasetVersion


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  nightschool tasks --json\n  nightschool tasks show invoice-fields\n"
    "  nightschool tasks rename invoice-fields 'Fields of invoices'",
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def tasks(ctx: click.Context, as_json: bool) -> None:
    """The tasks found in the logs, and who answers each. What is said here, no night takes back."""
    if ctx.invoked_subcommand is not None:
        return
    with context_of(ctx) as context:
        routes = {route.task_id: route for route in context.registry.routes()}
        rows = [
            {
                "id": task.id,
                "name": task.name,
                "state": task.state,
                "policy": task.policy,
                "calls": task.size,
                "champion": _answers(task, routes),
            }
            for task in context.registry.tasks()
        ]
    show(rows, as_json, "No tasks yet: they are found by night in the calls logged by day.")


@tasks.command(name="show", epilog="\b\nExample:\n  nightschool tasks show invoice-fields --json")
@click.argument("task")
@JSON_OPTION
@click.pass_context
@failing_clearly
def show_task(ctx: click.Context, task: str, as_json: bool) -> None:
    """One task: whose it is, what its calls have in common, and its score with the score's parts."""
    with context_of(ctx) as context:
        found = context.registry.task(task)
    row: dict[str, Any] = {
        "id": found.id,
        "name": found.name,
        "state": found.state,
        "policy": found.policy,
        "tag": found.tag,
        "calls": found.size,
        "radius": found.radius,
        **found.details,
    }
    if as_json:
        click.echo(json.dumps(row, indent=1))
        return
    for name, value in row.items():
        told = json.dumps(value) if isinstance(value, dict | list) else value
        click.echo(f"{name:<11} {told}")


@tasks.command(
    epilog="\b\nExample:\n  nightschool tasks rename invoice-fields 'Fields of invoices'"
)
@click.argument("task")
@click.argument("name")
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def rename(ctx: click.Context, task: str, name: str, why: str, actor: str) -> None:
    """Give a task another name for people. Its id, which adapters carry, stays."""
    with context_of(ctx) as context:
        try:
            context.registry.override_task(task, name=name, actor=actor, why=why)
        except ValueError as error:
            fail(str(error), USAGE)
    click.echo(f"{task} is now called {name}")


@tasks.command(epilog="\b\nExample:\n  nightschool tasks ignore small-talk --why 'too personal'")
@click.argument("task")
@click.option("--undo", is_flag=True, help="Learn it again.")
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def ignore(ctx: click.Context, task: str, undo: bool, why: str, actor: str) -> None:
    """Leave a task to the teacher: no data set, no training. What answers now goes on (rollback ends it)."""
    policy: Any = "specialize" if undo else "teacher"
    with context_of(ctx) as context:
        context.registry.set_task_policy(task, policy, actor=actor, why=why)
    click.echo(f"{task} is {'learned again' if undo else 'left to the teacher'}")


@tasks.command(epilog="\b\nExample:\n  nightschool tasks pin invoice-fields")
@click.argument("task")
@click.option("--undo", is_flag=True, help="Let it move with its calls again.")
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def pin(ctx: click.Context, task: str, undo: bool, why: str, actor: str) -> None:
    """Hold a task where it is: which calls are its own does not move with the traffic."""
    with context_of(ctx) as context:
        context.registry.override_task(task, pinned=not undo, actor=actor, why=why)
    click.echo(f"{task} is {'no longer pinned' if undo else 'pinned'}")


@tasks.command(epilog="\b\nExample:\n  nightschool tasks approval invoice-fields approve")
@click.argument("task")
@click.argument("who", type=click.Choice(["auto", "approve", "default"]))
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def approval(ctx: click.Context, task: str, who: Any, why: str, actor: str) -> None:
    """Whether a person agrees to this task's promotions, in rollouts opened from now on.

    auto: nobody is asked; approve: a promotion waits for somebody; default: as [rollout] approval says.
    """
    wanted = None if who == "default" else who
    with context_of(ctx) as context:
        context.registry.set_task_approval(task, wanted, actor=actor, why=why)
    click.echo(f"{task}: promotions are {'as set up' if wanted is None else who}")


@tasks.command(name="drift", epilog="\b\nExample:\n  nightschool tasks drift invoice-fields off")
@click.argument("task")
@click.argument("said", metavar="[on|off|default]", type=click.Choice(["on", "off", "default"]))
@WHY_OPTION
@AS_OPTION
@click.pass_context
@failing_clearly
def ask_after_drift(ctx: click.Context, task: str, said: str, why: str, actor: str) -> None:
    """Whether drift asks for a retraining of this task; it is told either way.

    default: as [watch] retrain says.
    """
    from flows.watching import set_asking

    with context_of(ctx) as context:
        set_asking(context, task, None if said == "default" else said, actor=actor, why=why)
    click.echo(f"{task}: after drift, retraining is {'as set up' if said == 'default' else said}")


@click.group(
    epilog="\b\nExamples:\n  nightschool datasets list invoice-fields\n"
    "  nightschool datasets diff 3f2a9c 81bb07\n"
    "  nightschool datasets export 3f2a9c invoice-data"
)
def datasets() -> None:
    """The frozen data sets. DIGEST is one's digest, or the beginning of it."""


@datasets.command(name="list", epilog="\b\nExample:\n  nightschool datasets list --json")
@click.argument("task", required=False)
@JSON_OPTION
@click.pass_context
@failing_clearly
def list_datasets(ctx: click.Context, task: str | None, as_json: bool) -> None:
    """The data sets of a task, or of all, oldest first."""
    with context_of(ctx) as context:
        chosen = [context.registry.task(task)] if task else context.registry.tasks()
        removed = _removed(context)
        rows = [
            {
                "digest": version.digest if as_json else version.digest[:16],
                "task": version.task_id,
                **version.manifest.get("counts", {}),
                "created": version.created,
                "removed": removed.get(version.location),
            }
            for item in chosen
            for version in context.registry.datasets(item.id)
        ]
    show(rows, as_json, "No data sets yet: a night freezes them.")


@datasets.command(name="show", epilog="\b\nExample:\n  nightschool datasets show 3f2a9c")
@click.argument("digest")
@JSON_OPTION
@click.pass_context
@failing_clearly
def show_dataset(ctx: click.Context, digest: str, as_json: bool) -> None:
    """What a data set holds, what was left out and why, and the log objects behind it."""
    with context_of(ctx) as context:
        version = _find(context, digest)
    manifest = dict(version.manifest)
    if as_json:
        click.echo(json.dumps({**manifest, "location": version.location}, indent=1))
        return
    objects = manifest.pop("parents", {}).get("log_objects", [])
    for name, value in {**manifest, "log objects": len(objects)}.items():
        told = json.dumps(value) if isinstance(value, dict | list) else value
        click.echo(f"{name:<21} {told}")


@datasets.command(epilog="\b\nExample:\n  nightschool datasets diff 3f2a9c 81bb07 --json")
@click.argument("old")
@click.argument("new")
@JSON_OPTION
@click.pass_context
@failing_clearly
def diff(ctx: click.Context, old: str, new: str, as_json: bool) -> None:
    """What NEW has that OLD has not, and the other way round: by call, answer and split."""
    from trainers.data_sets.comparing import compare

    with context_of(ctx) as context:
        found = compare(context.store, _find(context, old), _find(context, new))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, calls in found.items():
        click.echo(f"{name:<14} {len(calls)}" + (f"   e.g. {calls[0]}" if calls else ""))


@datasets.command(epilog="\b\nExample:\n  nightschool datasets export 3f2a9c invoice-data")
@click.argument("digest")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.pass_context
@failing_clearly
def export(ctx: click.Context, digest: str, folder: Path) -> None:
    """Write a data set into an empty FOLDER, as `datasets.load_dataset(FOLDER)` reads it."""
    from trainers.data_sets.comparing import export_version

    if folder.exists() and any(folder.iterdir()):
        fail(f"{folder} is not empty: name another folder", USAGE)
    with context_of(ctx) as context:
        version = _find(context, digest)
        rows = export_version(context.store, version, folder)
    click.echo(f"{rows} examples in {folder}: datasets.load_dataset({str(folder)!r})")


def _answers(task: Task, routes: Mapping[str, Route]) -> str:
    into = merged_into(task.details)
    if into is not None:
        return f"as {into}"
    return routes[task.id].champion if task.id in routes else "teacher"


def _removed(context: Context) -> dict[str, str]:
    """Location of each data set whose files are gone or going, to why."""
    from infra.database.garbage import read_marks

    with context.database.read() as connection:
        return {m.location: m.why for m in read_marks(connection) if m.state != "marked"}


def _find(context: Context, digest: str) -> DatasetVersion:
    from trainers.data_sets.versions import find_dataset

    found = [
        version
        for task in context.registry.tasks()
        for version in context.registry.datasets(task.id)
        if version.digest.startswith(digest.lower())
    ]
    if len(found) != 1:
        what = "no data set begins" if not found else f"{len(found)} data sets begin"
        fail(f"{what} with {digest}: see `nightschool datasets list`", NOT_FOUND)
    if (why := _removed(context).get(found[0].location)) is not None:
        fail(f"data set {found[0].digest[:16]} was removed: {why}", NOT_FOUND)
    return find_dataset(context.store, found[0].location)
