"""The command that erases a subject."""

from __future__ import annotations

import json

import click

from flows.cli.common import AS_OPTION, JSON_OPTION, USAGE, context_of, fail, failing_clearly

TOLD = {
    "calls": "calls",
    "feedback": "reports on calls",
    "other_lines": "unreadable lines that name it",
    "unreadable": "lines nobody could read, in the objects rewritten",
    "log_objects": "log objects",
    "quarantine_entries": "entries in quarantine",
    "examples": "examples",
    "datasets": "data sets",
    "new_versions": "data sets made anew without it",
    "datasets_removed": "data sets removed",
    "datasets_waiting": "data sets in use: they go when no route or rollout rests on them",
    "datasets_not_now": "data sets being looked at by another run: nightschool gc takes them",
    "runs_at_work": "training runs at work on them: cancel them and run this again",
    "adapters_due": "adapters due for retraining",
    "golden_cases": "golden cases",
    "evidence_objects": "kept evidence objects of rollouts",
    "drift_reports": "files of looks at drift, which the next watch makes anew",
}


@click.command(
    epilog="\b\nExamples:\n  nightschool forget --session chat-4711 --dry-run\n"
    "  nightschool forget --tenant shop --yes --json\n"
    "  nightschool forget --match 'Jane Doe'"
)
@click.option("--session", help="The id, or OpenAI `user`, that the caller gave; of any tenant.")
@click.option("--tenant", help="Everything of one tenant.")
@click.option("--match", "text", help="Every call, report and example that holds this text.")
@click.option("--dry-run", is_flag=True, help="Only count what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def forget(
    ctx: click.Context,
    session: str | None,
    tenant: str | None,
    text: str | None,
    dry_run: bool,
    yes: bool,
    actor: str,
    as_json: bool,
) -> None:
    """Erase a subject from logs, data sets, quarantine and kept evidence. There is no way back.

    Adapters that learned from it are trained anew by the next night. A gateway's spool ships what it
    still holds: run it again a minute after the last call. Backups, older versions in a versioned
    bucket and the sources of imports are not reached. Killed, run it again.
    """
    from flows.forgetting import forget as take
    from flows.forgetting import look_for
    from trainers.forgetting.subject import Kind, Subject

    named: dict[Kind, str | None] = {"session": session, "tenant": tenant, "match": text}
    given = [(kind, value) for kind, value in named.items() if value is not None]
    if len(given) != 1:
        fail("name one of --session, --tenant and --match", USAGE)
    if as_json and not (yes or dry_run):
        fail("--json asks nothing: add --yes, or --dry-run", USAGE)
    with context_of(ctx) as context:
        try:
            subject = Subject.of(*given[0], context.settings.anonymizer)
        except ValueError as error:
            fail(str(error), USAGE)
        if dry_run or not yes:
            counts = look_for(context, subject)
            if not as_json:
                _tell(counts, "would go" if dry_run else "to be erased")
        if not dry_run:
            if not yes:
                click.confirm("Erase it?", abort=True)
            counts = take(context, subject, actor=actor)
            if not as_json:
                _tell(counts, "done")
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **{n: counts[n] for n in TOLD if counts[n]}}))


def _tell(counts: dict[str, int], what: str) -> None:
    rows = [(counts[name], told) for name, told in TOLD.items() if counts.get(name)]
    click.echo(f"{what}:" if rows else f"{what}: nothing")
    for count, told in rows:
        click.echo(f"{count:>9}  {told}")
