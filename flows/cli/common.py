"""What the commands share: settings, tables, JSON, and errors that say what to do."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from flows.wiring import Context
    from infra.settings.model import Settings

P = ParamSpec("P")
R = TypeVar("R")

FAILED, USAGE, NOT_FOUND = 1, 2, 3

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script.")


def settings_of(ctx: click.Context) -> Settings:
    """The settings, from the file named by ``--config``; child processes read the same file."""
    from infra.settings.sources import load_settings

    if ctx.obj:
        os.environ["NIGHTSCHOOL_CONFIG"] = str(ctx.obj)
    return load_settings()


@contextmanager
def context_of(ctx: click.Context) -> Iterator[Context]:
    from flows.wiring import open_context

    with open_context(settings_of(ctx)) as context:
        yield context


def failing_clearly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the product's own errors into one line and an exit status; leave bugs their trace."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from flows.orchestrator import OrchestratorDown, OrchestratorRefused
        from flows.stack.processes import StackError
        from infra.database.open import DatabaseError
        from infra.objects.store import ObjectStoreError
        from infra.settings.sources import SettingsError
        from serving.registry.errors import NothingToRollBack, RegistryError, Unknown

        try:
            return command(*args, **kwargs)
        except SettingsError as error:
            fail(str(error), USAGE)
        except (Unknown, NothingToRollBack) as error:
            fail(str(error), NOT_FOUND)
        except (
            DatabaseError,
            ObjectStoreError,
            OrchestratorDown,
            OrchestratorRefused,
            RegistryError,
            StackError,
        ) as error:
            fail(str(error), FAILED)

    return wrapped


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
