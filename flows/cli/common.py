"""What the commands share: settings, tables, JSON, and errors that say what to do."""

from __future__ import annotations

import functools
import getpass
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from flows.wiring import Context
    from infra.database.open import Database
    from infra.settings.model import Settings

P = ParamSpec("P")
R = TypeVar("R")

FAILED, USAGE, NOT_FOUND = 1, 2, 3
# By name, so that a command imports only what it uses.
KNOWN_ERRORS = {
    "infra.settings.sources.SettingsError": USAGE,
    "infra.database.open.DatabaseUrlInvalid": USAGE,
    "infra.database.open.DatabaseError": FAILED,
    "infra.database.garbage.BeingRemoved": FAILED,
    "infra.objects.store.ObjectStoreError": FAILED,
    "infra.calls.finding.CallNotFound": NOT_FOUND,
    "infra.artifacts.manifest.ArtifactError": FAILED,
    "evaluators.judge.asking.JudgeAway": FAILED,
    "serving.engines.protocol.EngineError": FAILED,
    "serving.registry.errors.Unknown": NOT_FOUND,
    "serving.registry.errors.NothingToRollBack": NOT_FOUND,
    "serving.registry.errors.RegistryError": FAILED,
    "trainers.base_model.BaseModelError": FAILED,
    "trainers.data_sets.versions.DatasetCorrupt": FAILED,
    "trainers.data_sets.golden.GoldenMissing": NOT_FOUND,
    "trainers.data_sets.golden.GoldenError": FAILED,
    "trainers.discover.assignments.AssignmentsCorrupt": FAILED,
    "trainers.discover.discover.DiscoveryContended": FAILED,
    "trainers.discover.parts.CannotSplit": FAILED,
    "trainers.executors.protocol.ExecutorError": FAILED,
    "trainers.ingest.taking.WorkersLost": FAILED,
    "flows.forgetting.StillFound": FAILED,
    "flows.kept_evidence.EvidenceDamaged": FAILED,
    "flows.holding.Busy": FAILED,
    "flows.drift_inquiry.NothingToCompare": FAILED,
    "flows.hooks.secrets.SecretError": FAILED,
    "infra.signing_keys.SigningKeyError": FAILED,
    "flows.night.NightFailed": FAILED,
    "prefect.exceptions.CrashedRun": FAILED,
    "flows.orchestrator.OrchestratorDown": FAILED,
    "flows.orchestrator.OrchestratorRefused": FAILED,
    "flows.stack.processes.StackError": FAILED,
}

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script.")


def who_acts() -> str:
    """The person at this machine, ``user@host``; at most 100 characters."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:100]


def _actor(_: click.Context, __: click.Parameter, given: str) -> str:
    if not 0 < len(given.strip()) <= 100:
        raise click.BadParameter("a name has 1 to 100 characters")
    return given


AS_OPTION = click.option(
    "--as",
    "actor",
    default=who_acts,
    show_default="user@host",
    callback=_actor,
    help="Who does this; kept with the event.",
)


WHY_OPTION = click.option(
    "--why", default="by hand", show_default=True, help="Kept with the event."
)


def settings_of(ctx: click.Context) -> Settings:
    """The settings, from the file named by ``--config``; child processes read the same file."""
    from infra.settings.sources import load_settings

    if ctx.obj:
        os.environ["NIGHTSCHOOL_CONFIG"] = str(ctx.obj)
    return load_settings()


def note_order(
    database: Database, what: str, subject: str, *, actor: str, why: str, **evidence: Any
) -> None:
    """Keep who asked for something; what comes of it has events of its own.

    Args:
        what: the event, such as ``night.asked``.
        subject: the task, file or place; cut where it is too long for an event.
    """
    from infra.database.events import record_event

    with database.begin() as connection:
        record_event(
            connection,
            actor=actor,
            what=what,
            subject=subject[:200],
            why=why,
            evidence=evidence,
        )


@contextmanager
def context_of(ctx: click.Context) -> Iterator[Context]:
    from flows.wiring import open_context

    with open_context(settings_of(ctx)) as context:
        yield context


def failing_clearly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the product's own errors into one line and an exit status; leave bugs their trace."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except Exception as error:
            status = _status_of(error)
            if status is None:
                raise
            fail(str(error), status)

    return wrapped


def _status_of(error: Exception) -> int | None:
    """The exit status that stands for the error's nearest known class."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((KNOWN_ERRORS[name] for name in names if name in KNOWN_ERRORS), None)


def fail(message: str, status: int) -> NoReturn:
    click.echo(f"nightschool: {message}", err=True)
    sys.exit(status)


def show(rows: Sequence[dict[str, Any]], as_json: bool, empty: str) -> None:
    """Rows as a table with one line each, or as JSON."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=1, default=str))
        return
    if not rows:
        click.echo(empty)
        return
    names = list(rows[0])
    cells = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        click.echo(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def shown_time(value: datetime | str | None) -> str:
    """A time as a person reads it, to the second; ISO text may come from elsewhere."""
    if value is None:
        return "-"
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
