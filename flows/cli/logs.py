"""Commands about logs: taking other systems' in, what could not be read, what anonymizing does."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.common import (
    AS_OPTION,
    FAILED,
    JSON_OPTION,
    NOT_FOUND,
    USAGE,
    WHY_OPTION,
    context_of,
    fail,
    failing_clearly,
    note_order,
    settings_of,
    show,
)

if TYPE_CHECKING:
    from infra.settings.model import Settings
    from trainers.importing.importing import ImportReport

FORMATS = (
    *("auto", "flywheel", "langfuse", "langsmith", "litellm"),
    *("nightschool", "openai", "otel"),
)


@click.command(
    name="import",
    epilog="\b\nExamples:\n  nightschool import litellm s3://gateway-logs/2026/\n"
    "  nightschool import auto exports/ --dry-run --json",
)
@click.argument("format_name", metavar="FORMAT", type=click.Choice(FORMATS))
@click.argument("location")
@click.option("--tenant", default="default", show_default=True, help="Whose calls these are.")
@click.option("--dry-run", is_flag=True, help="Read and count, and store nothing.")
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def import_logs(
    ctx: click.Context,
    format_name: str,
    location: str,
    tenant: str,
    dry_run: bool,
    why: str,
    actor: str,
    as_json: bool,
) -> None:
    """Take in another system's logs: a file, a folder, or s3://bucket/prefix.

    FORMAT is what wrote them; auto tells each row by its marks. Personal data is replaced before
    anything is stored. What was taken in before is left alone, so an import that was killed is run
    again, and goes on. The next ingest takes it in, and `night` learns from it.
    """
    from flows.taking_in import import_foreign

    if not 1 <= len(tenant) <= 200:
        fail("--tenant has 1 to 200 characters", USAGE)
    with context_of(ctx) as context:
        if not dry_run:
            note_order(
                context.database,
                "import.asked",
                location,
                actor=actor,
                why=why,
                format=format_name,
                tenant=tenant,
            )
        report = import_foreign(
            context, format_name, location, tenant=tenant, dry_run=dry_run, say=_progress()
        )
    if sys.stderr.isatty():
        click.echo(err=True)
    if as_json:
        click.echo(json.dumps(_summary(report), indent=1))
    else:
        _tell(report, dry_run)
    if report.failed:
        fail(f"{report.failed} objects could not be read: run it again", FAILED)


@click.group(
    epilog="\b\nExamples:\n  nightschool quarantine list\n"
    "  nightschool quarantine explain 3f2a9c1b7d04\n  nightschool quarantine rerun"
)
def quarantine() -> None:
    """Rows of logs that could not be read: what, where and why. Their text is never kept."""


@quarantine.command(name="list", epilog="\b\nExample:\n  nightschool quarantine list --json")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@JSON_OPTION
@click.pass_context
@failing_clearly
def list_entries(ctx: click.Context, limit: int, as_json: bool) -> None:
    """The entries, a line each, and how many there are by reason."""
    from trainers.importing.quarantined import quarantines

    rows: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    with context_of(ctx) as context:
        for listed in quarantines(context.store):
            for entry in listed.entries:
                reasons[entry.reason] += 1
                if len(rows) < limit:
                    rows.append({"id": entry.id, **asdict(entry)})
            if listed.unnamed:
                reasons["not kept one by one"] += listed.unnamed
    if as_json:
        click.echo(json.dumps({"entries": rows, "reasons": dict(reasons)}, indent=1))
        return
    shown = ("id", "reader", "object", "row", "position", "reason")
    show([{name: row[name] for name in shown} for row in rows], False, "Nothing is in quarantine.")
    if reasons.total() > len(rows):
        click.echo(f"and {reasons.total() - len(rows)} more; in all:")
    for reason, count in reasons.most_common():
        click.echo(f"  {count:>8}  {reason}")


@quarantine.command(
    name="explain", epilog="\b\nExample:\n  nightschool quarantine explain 3f2a9c1b7d04"
)
@click.argument("entry_id", metavar="ID")
@JSON_OPTION
@click.pass_context
@failing_clearly
def explain_entry(ctx: click.Context, entry_id: str, as_json: bool) -> None:
    """One entry: what is wrong, where it lies, and what to do."""
    from trainers.importing.advice import advice
    from trainers.importing.quarantined import quarantines

    with context_of(ctx) as context:
        for listed in quarantines(context.store):
            for entry in listed.entries:
                if entry.id != entry_id:
                    continue
                row = {"id": entry.id, **asdict(entry), "advice": advice(entry)}
                if as_json:
                    click.echo(json.dumps(row, indent=1))
                    return
                for name, value in row.items():
                    click.echo(f"{name:<9} {value}")
                return
    fail(f"no entry {entry_id} in quarantine: see `nightschool quarantine list`", NOT_FOUND)


@quarantine.command(
    name="rerun",
    epilog="\b\nExamples:\n  nightschool quarantine rerun\n"
    "  nightschool quarantine rerun 3f2a9c1b7d04",
)
@click.argument("entry_ids", metavar="[ID]...", nargs=-1)
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def rerun_entries(
    ctx: click.Context, entry_ids: tuple[str, ...], why: str, actor: str, as_json: bool
) -> None:
    """Read entries again (all, or those named) where they still lie, e.g. after an update."""
    from flows.taking_in import rerun_quarantine

    with context_of(ctx) as context:
        subject = ", ".join(entry_ids) or "all"
        note_order(context.database, "quarantine.asked", subject, actor=actor, why=why)
        report = rerun_quarantine(context, entry_ids)
    if entry_ids and not report.tried:
        fail("none of these entries is in quarantine: see `nightschool quarantine list`", NOT_FOUND)
    if as_json:
        click.echo(json.dumps({**vars(report), "left": dict(report.left)}, indent=1))
        return
    click.echo(f"{report.tried} entries read again, {report.settled} settled")
    click.echo(f"{report.stored} records stored: ingest takes them in next")
    for reason, count in report.left.most_common():
        click.echo(f"  left {count:>6}  {reason}")


@click.command(
    epilog="\b\nExamples:\n  nightschool anonymize calls.jsonl --explain\n"
    "  nightschool anonymize export.parquet --format langfuse --output clean.jsonl\n"
    "  nightschool anonymize notes.txt --format text --explain"
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--explain", "explaining", is_flag=True, help="Show what would be replaced, never the value."
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice((*FORMATS, "text")),
    default="auto",
    show_default=True,
    help="text: any text, line by line.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Else to the screen."
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def anonymize(
    ctx: click.Context,
    file: Path,
    explaining: bool,
    format_name: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """What the anonymizer makes of a file's calls, by the [anonymizer] settings.

    Writes the records as JSON lines, or with --explain per row what it would replace: kind, count,
    placeholder, field, and the words around it with every value masked.
    """
    from flows.anonymizing import anonymized
    from infra.files import write_atomically

    settings = settings_of(ctx)
    if explaining:
        if output is not None:
            fail("--explain stores nothing: leave out --output", USAGE)
        _explain(settings, file, format_name, as_json)
        return
    told: Counter[str] = Counter()

    def lines() -> Iterator[bytes]:
        for row in anonymized(settings, file, format_name):
            told["problems" if row.problem else "records"] += 1
            if row.left_out:
                click.echo(f"{row.position}: not stored, it holds {row.left_out}", err=True)
            elif row.problem:
                click.echo(f"{row.position}: {row.problem}", err=True)
            else:
                yield row.line

    if output is not None:
        write_atomically(output, lines())
    else:
        for line in lines():
            sys.stdout.buffer.write(line) if _is_binary() else click.echo(line, nl=False)
    if not told["records"]:
        hint = "" if format_name == "text" else " as a call: --format text takes any text"
        fail(f"no row of {file} could be read{hint}", FAILED)


def _explain(settings: Settings, file: Path, format_name: str, as_json: bool) -> None:
    from flows.anonymizing import anonymized
    from infra.anonymize.kinds import EVERY_KIND

    policies = {kind: settings.anonymizer.policy_of(kind) for kind in sorted(EVERY_KIND)}
    if not as_json:
        _tell_policy(settings, policies)
    total: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows, read, problems = [], 0, 0
    for row in anonymized(settings, file, format_name):
        if row.left_out:
            left_out[row.left_out] += 1
        read += 1
        problems += bool(row.problem)
        total.update(row.counts)
        if as_json:
            found = [asdict(item) for item in row.replacements]
            if found or row.problem or row.left_out:
                told = {"row": row.position, "problem": row.problem, "left_out": row.left_out}
                rows.append({**told, "replacements": found})
            continue
        if row.left_out:
            click.echo(f"{row.position}: the record is not stored, it holds {row.left_out}")
        if row.problem:
            click.echo(f"{row.position}: {row.problem}")
        for item in row.replacements:
            click.echo(
                f"{row.position}  {item.path}: {item.count} x {item.kind} -> {item.placeholder}"
                + (f"   ...{item.context}..." if item.context else "")
            )
    if as_json:
        summary = {"read": read, "problems": problems, "kinds": dict(total)}
        summary |= {"left_out": dict(left_out), "policy": policies, "rows": rows}
        click.echo(json.dumps(summary, indent=1))
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in total.most_common()) or "nothing"
    click.echo(
        f"{read} records read, {problems} unreadable, {left_out.total()} not to be stored; "
        f"to replace: {kinds}"
    )


def _tell_policy(settings: Settings, policies: Mapping[str, str]) -> None:
    """Which policy is for which kinds, by [anonymizer]."""
    by_policy: defaultdict[str, list[str]] = defaultdict(list)
    for kind, policy in policies.items():
        by_policy[policy].append(kind)
    for policy, kinds in sorted(by_policy.items()):
        click.echo(f"{policy + ':':<13}{', '.join(kinds)}")
    names = settings.anonymizer.names
    click.echo(
        f"Names of people, places and organisations: {names}."
        if settings.anonymizer.enabled
        else "[anonymizer] enabled is false: nothing is replaced."
    )


def _is_binary() -> bool:
    return hasattr(sys.stdout, "buffer")


def _progress() -> Any:
    """A line that rewrites itself, for a person who looks; a script's log stays clean."""
    if not sys.stderr.isatty():
        return lambda _: None
    width = os.get_terminal_size(sys.stderr.fileno()).columns - 1

    def say(line: str) -> None:
        click.echo(f"\r{line[:width]:<{width}}", nl=False, err=True)

    return say


def _summary(report: ImportReport) -> dict[str, Any]:
    return {
        name: dict(value) if isinstance(value, Counter) else value
        for name, value in vars(report).items()
    } | {"lost": report.lost}


def _tell(report: ImportReport, dry_run: bool) -> None:
    verb = "would be stored" if dry_run else "stored"
    click.echo(
        f"{report.objects} objects read ({report.known} were known), {report.read} rows: "
        f"{report.stored} {verb}, {report.duplicates} duplicates, "
        f"{report.failures} calls without an answer"
    )
    for title, counts in (
        ("format", report.formats),
        ("skipped", report.skipped),
        ("quarantined", report.quarantined),
        ("replaced", report.personal_data),
        ("left out", report.left_out),
    ):
        for name, count in counts.most_common():
            click.echo(f"  {title:<11} {count:>8}  {name}")
    if report.quarantined and not dry_run:
        click.echo("See `nightschool quarantine list`.")
