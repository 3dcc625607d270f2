"""Commands about where things come from: lineage and history."""

from __future__ import annotations

import json
from typing import Any

import click

from flows.cli.common import JSON_OPTION, context_of, failing_clearly, show, shown_time

SHOWN_OBJECTS = 5


@click.command(
    epilog="\b\nExamples:\n  nightschool lineage invoice-fields@3fa9c0de12ab34cd\n"
    "  nightschool lineage 0199b7a5-3f51-7c2e-9d0c-8a4f5b6c7d8e\n"
    "  nightschool lineage logs/v1/dt=2026-05-01/hh=07/gateway-0000000042.jsonl.zst --json"
)
@click.argument("what")
@click.option(
    "--kind",
    type=click.Choice(["adapter", "call", "dataset", "object"]),
    help="What WHAT is. Default: told by its form.",
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def lineage(ctx: click.Context, what: str, kind: str | None, as_json: bool) -> None:
    """Where WHAT comes from and what became of it.

    WHAT is an adapter (task@digest), the id of a call (x-nightschool-call-id), the digest of a data
    set (8 characters or more) or the key of a log object.
    """
    from serving.registry import documents
    from serving.registry.lineage import kind_of

    with context_of(ctx) as context:
        registry, most = context.registry, None if as_json else SHOWN_OBJECTS
        kind = kind or kind_of(what)
        if kind == "adapter":
            found = documents.lineage_document(registry.lineage(what), most)
        elif kind == "call":
            answer = registry.answer_lineage(context.store, what)
            found = documents.answer_lineage_document(answer, most)
        elif kind == "dataset":
            found = documents.dataset_lineage_document(registry.dataset_lineage(what), most)
        else:
            found = documents.object_lineage_document(registry.object_lineage(what))
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for line in _told(found):
            click.echo(line)


@click.command(
    epilog="\b\nExamples:\n  nightschool history invoice-fields\n"
    "  nightschool history invoice-fields --limit 500 --json"
)
@click.argument("task")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@JSON_OPTION
@click.pass_context
@failing_clearly
def history(ctx: click.Context, task: str, limit: int, as_json: bool) -> None:
    """Everything that happened to TASK, its adapters and its rollouts; newest first."""
    from serving.registry.documents import event_document

    with context_of(ctx) as context:
        found = context.registry.history(task, limit)
    if as_json:
        show([event_document(event) for event in found], True, "")
        return
    rows = [
        {
            "time": event.time,
            "actor": event.actor,
            "what": event.what,
            "subject": event.subject,
            "why": event.why,
        }
        for event in found
    ]
    show(rows, False, f"Nothing has happened to {task} yet.")


def _told(found: dict[str, Any]) -> list[str]:
    kind = found["kind"]
    if kind == "call":
        return _told_call(found)
    if kind == "adapter":
        return ["Taken for an adapter.", *_told_adapter(found)]
    if kind == "dataset":
        return [
            "Taken for a data set.",
            *_told_dataset(found),
            *_listed("learned from by", [_named(adapter) for adapter in found["adapters"]]),
        ]
    datasets = [f"{data['digest']} of {data['task']}" for data in found["datasets"]]
    taken = f" {shown_time(found['ingested'])}" if found["ingested"] else ""
    return [
        "Taken for a log object.",
        f"object      {found['object']}",
        f"taken in    {found['state'] or 'not yet'}{taken}",
        *_listed("data sets", datasets),
        *_listed("learned from by", [_named(adapter) for adapter in found["adapters"]]),
    ]


def _told_call(found: dict[str, Any]) -> list[str]:
    call = found["call"]
    by = call["adapter"] or call["model"]
    why = f" (escalated: {call['escalation']})" if call["escalation"] else ""
    lines = [
        "Taken for a call.",
        f"call        {call['id']} at {shown_time(call['time'])}, tenant {call['tenant']}",
        f"task        {call['task'] or 'none'}",
        f"record in   {call['object']}",
        f"answered by {by}{why}",
        f"route       version {call['route_version']}",
    ]
    if call["rollout"]:
        state = found["rollout"]["state"] if found["rollout"] else "not known here"
        lines.append(f"rollout     {call['rollout']} ({state}), arm {call['arm']}")
    if found["adapter"]:
        lines += _told_adapter(found["adapter"])
    elif call["adapter"]:
        lines.append("adapter     not known to this registry")
    return lines


def _told_adapter(found: dict[str, Any]) -> list[str]:
    cards = [
        f"{card['verdict'] or 'no verdict'} at {shown_time(card['created'])}"
        for card in found["scorecards"]
    ]
    rollouts = [f"{one['id']} {one['state']}: {one['reason']}" for one in found["rollouts"]]
    return [
        f"adapter     {_named(found['adapter'])}",
        f"base model  {found['base_model']} ({(found['base_digest'] or 'unknown')[:12]})",
        *_told_dataset(found),
        *_listed("judged", cards),
        *_listed("rollouts", rollouts),
    ]


def _told_dataset(found: dict[str, Any]) -> list[str]:
    data = found["dataset"]
    more = found["source_count"] - len(found["source_objects"])
    keys = found["source_objects"] + ([f"and {more} more (--json lists them)"] if more else [])
    return [
        f"data set    {data['digest']} of {data['task']}, frozen {shown_time(data['created'])}",
        *_listed(f"made of {found['source_count']} log objects", keys),
    ]


def _named(adapter: dict[str, Any]) -> str:
    return f"{adapter['name']} ({adapter['state']})"


def _listed(title: str, items: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {item}" for item in items or ["none"])]
