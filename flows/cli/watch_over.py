"""Commands that watch over the whole: status, doctor, audit."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from typing import Any

import click

from flows.cli.common import (
    FAILED,
    JSON_OPTION,
    USAGE,
    context_of,
    fail,
    failing_clearly,
    settings_of,
    show,
    shown_time,
)


@click.command(epilog="\b\nExamples:\n  nightschool status\n  nightschool status --json")
@JSON_OPTION
@click.pass_context
@failing_clearly
def status(ctx: click.Context, as_json: bool) -> None:
    """One screen: what runs, the small models' share, money saved, rollouts, last night, backlog.

    Share and money are those of this machine's gateway since it started.
    """
    from flows.overview import overview
    from flows.stack.processes import answers
    from flows.stack.services import addresses

    running = {
        name: {"url": url, "up": answers(url)} for name, url in addresses(settings_of(ctx)).items()
    }
    if not as_json:
        # Before database and store are opened: where one of them is away, this is what is left.
        for name, service in running.items():
            click.echo(f"{name:<9} {'up' if service['up'] else 'down':<5} {service['url']}")
    with context_of(ctx) as context:
        found: dict[str, dict[str, Any]] = {
            "services": running,
            "champions": {route.task_id: route.champion for route in context.registry.routes()},
            "open_rollouts": {
                rollout.adapter: rollout.state for rollout in context.registry.rollouts("open")
            },
            **overview(context),
        }
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
        return
    for title in ("champions", "open_rollouts"):
        click.echo(f"{title.replace('_', ' ')}: {len(found[title])}")
        for key, value in found[title].items():
            click.echo(f"  {key}: {value}")
    for title, part in (("traffic", _traffic), ("last_night", _night), ("drift", _drift)):
        said = found[title]
        told = f"not known ({said['error']})" if "error" in said else part(said)
        click.echo(f"{title.replace('_', ' ')}: {told}")
    for line in _backlog(found["backlog"]):
        click.echo(line)


def _traffic(said: dict[str, Any]) -> str:
    lost = f", {said['records_lost']} records LOST" if said["records_lost"] else ""
    return (
        f"{said['calls']} calls, {said['small_model_share']:.0%} by small models, "
        f"{said['cost_saved']:.2f} saved ({said['tokens_saved']} tokens); spool: "
        f"{said['spool_records']} records, {said['spool_objects']} objects{lost}"
    )


def _night(said: dict[str, Any]) -> str:
    if said["state"] is None:
        return "none yet"
    state = str(said["state"]).lower()
    began, ended = shown_time(said["started"]), shown_time(said["ended"])
    why = f": {said['told'][:500]}" if state in ("failed", "crashed") and said.get("told") else ""
    return f"{said['name']}, {state}, began {began}, ended {ended}{why}"


def _drift(said: dict[str, Any]) -> str:
    tasks = "; ".join(
        f"{task} ({', '.join(one['columns'][:3]) or format(one['share'], '.0%')}; retraining "
        f"{one['retraining'] or 'not asked for'})"
        for task, one in said["tasks"].items()
    )
    return tasks or f"none in {said['days']} days"


def _backlog(said: dict[str, Any]) -> list[str]:
    if "error" in said:
        return [f"backlog: not known ({said['error']})"]
    kept = ", ".join(f"{count} {hook}" for hook, count in said["webhooks_kept"].items())
    return [
        f"backlog: {said['log_objects']} log objects to ingest "
        f"(last ingest {shown_time(said['last_ingest'])}), "
        f"{said['messages_waiting']} messages waiting, {said['messages_dead']} given up, "
        f"webhooks kept: {kept or 'none'}"
    ]


@click.command(epilog="\b\nExamples:\n  nightschool doctor\n  nightschool doctor --json")
@JSON_OPTION
@click.pass_context
@failing_clearly
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check everything this installation stands on, and say how to mend what is broken.

    Each check has ten seconds. Status 1 if something is broken; a warning alone is 0.
    """
    from flows.examination import examine

    found = examine(settings_of(ctx))
    rows = [vars(check) for check in found]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for check in found:
            click.echo(f"{check.outcome:<7} {check.name:<16} {check.told}")
            if check.mend:
                click.echo(f"{'':<24} -> {check.mend}")
    if any(check.outcome == "broken" for check in found):
        sys.exit(FAILED)


@click.command(
    epilog="\b\nExamples:\n  nightschool audit --since 24h\n"
    "  nightschool audit --task invoice-fields --what route.changed\n"
    "  nightschool audit --actor ann@desk --json"
)
@click.option("--since", help="A time such as 2030-01-31T12:00:00Z, or 90m, 24h, 7d ago.")
@click.option("--task", help="What happened to this task, its adapters and its rollouts.")
@click.option("--actor", help="What this one did, such as ann@desk or webhook:ci.")
@click.option("--what", help="Only this kind, such as route.changed; `key.` for all of keys.")
@click.option("--before", type=click.IntRange(1), help="The page before this event's number.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@JSON_OPTION
@click.pass_context
@failing_clearly
def audit(
    ctx: click.Context,
    since: str | None,
    task: str | None,
    actor: str | None,
    what: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """Who changed what, why and when; newest first, a page at a time."""
    from serving.registry.lineage import find_events

    with context_of(ctx) as context:
        if task is not None:
            context.registry.task(task)
        with context.database.read() as connection:
            found = find_events(
                connection,
                task=task,
                actor=actor,
                what=what,
                since=_asked_time(since) if since else None,
                before=before,
                limit=limit + 1,
            )
    page, more = found[:limit], len(found) > limit
    rows = [
        {
            "id": event.id,
            "time": event.time,
            "actor": event.actor,
            "what": event.what,
            "subject": event.subject,
            "why": event.why,
        }
        for event in page
    ]
    after = page[-1].id if more else None
    if as_json:
        click.echo(json.dumps({"items": rows, "before": after}, indent=1, default=str))
        return
    show(rows, False, "Nothing of that kind has happened.")
    if after is not None:
        click.echo(f"more: --before {after}", err=True)


def _asked_time(given: str) -> datetime:
    from infra.calls.record import utc_now

    unit = {"m": "minutes", "h": "hours", "d": "days"}.get(given[-1:])
    if unit and given[:-1].isdigit() and len(given) < 8:
        return utc_now() - timedelta(**{unit: int(given[:-1])})
    try:
        found = datetime.fromisoformat(given)
    except ValueError:
        fail(f"{given[:50]!r} is no time such as 2030-01-31T12:00:00Z, 24h or 7d", USAGE)
    if found.tzinfo is None:
        fail("a time needs its zone, as in 2030-01-31T12:00:00Z", USAGE)
    return found
