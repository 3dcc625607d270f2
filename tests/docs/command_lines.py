"""``nightschool ...`` lines, as documents quote them, held against the commands there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click

from flows.cli import main

CALLED = ("nightschool", ".venv/bin/nightschool", "ns", "ns_files")
"""How documents call the command; the last two are the runbook's aliases."""
_ENDS = re.compile(r"[|;&<>]|\d>")
_PLACEHOLDER = re.compile(r"\[?[A-Z][A-Z_.]*(\.\w+)?\]?(\.\.\.)?")


def commands_in(shell: str) -> Iterator[list[str]]:
    """The words after ``nightschool`` of each line that calls it. Raises ValueError: open quotes."""
    for line in shell.replace("\\\n", " ").splitlines():
        if not any(name in line for name in CALLED) or line.lstrip().startswith(("#", "alias ")):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
        for place, word in enumerate(words):
            # As kubectl's namespace or a database's owner it is no command.
            before = words[place - 1] if place else ""
            if word in CALLED and not before.startswith("-"):
                rest = words[place + 1 :]
                end = next((n for n, one in enumerate(rest) if _ENDS.match(one)), len(rest))
                yield rest[:end]


def problem(words: Sequence[str], *, whole: bool = True) -> str | None:
    """Why the command line would not be understood; None where it would.

    Values in capitals stand for a reader's own, and files need not be there. ``whole``: it is to be
    run, not only named, so no argument may be missing.
    """
    command: click.Command = main
    context = click.Context(main, info_name="nightschool")
    rest = list(words)
    try:
        while True:
            rest = _taken(command, context, rest)
            if not isinstance(command, click.Group):
                return f"nothing takes {rest}" if rest else None
            if not rest:
                alone = command.invoke_without_command or not whole
                return None if alone else f"{context.command_path} is only a group"
            if not whole and _PLACEHOLDER.fullmatch(rest[0]):
                return None
            inner = command.get_command(context, rest[0])
            if inner is None:
                return f"{context.command_path} has no {rest[0]!r}"
            context = click.Context(inner, parent=context, info_name=rest[0])
            command, rest = inner, rest[1:]
    except click.exceptions.Exit:
        return None
    except click.MissingParameter as error:
        return error.format_message() if whole else None
    except click.UsageError as error:
        return error.format_message()


def _taken(command: click.Command, context: click.Context, words: list[str]) -> list[str]:
    """What a command's own options and arguments leave over. Raises click.UsageError."""
    if "--help" in words:
        raise click.exceptions.Exit
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    for param in command.params:
        given = values.get(param.name or "")
        free = isinstance(param.type, click.Path | click.File)
        if isinstance(given, str) and (free or _PLACEHOLDER.fullmatch(given)):
            continue
        param.handle_parse_result(context, values, rest)
    return rest
