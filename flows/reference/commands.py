"""The command line as a page of Markdown. Made of the commands' own declarations, not of their help
texts as a terminal shows them: those change with the width and with click's release."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

import click

HEAD = """\
# Command line

Made by `python -m flows.reference`; a test keeps it as the code is. `nightschool --config FILE COMMAND`
reads the settings from FILE, else from the file that `NIGHTSCHOOL_CONFIG` names, else from
`nightschool.toml` of the folder. Exit status: 0 done, 1 it failed, 2 wrong usage or settings, 3 not found.
"""


@dataclass(frozen=True)
class Found:
    """A command and the words that call it, without ``nightschool``."""

    words: tuple[str, ...]
    command: click.Command


def every_command(root: click.Group, words: tuple[str, ...] = ()) -> Iterator[Found]:
    """The commands below a group, each group before what it holds."""
    context = click.Context(root)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None, name
        yield Found((*words, name), command)
        if isinstance(command, click.Group):
            yield from every_command(command, (*words, name))


def commands_page(root: click.Group) -> str:
    found = list(every_command(root))
    contents = [
        f"- [`{one.words[0]}`](#{'-'.join(('nightschool', *one.words))})"
        for one in found
        if len(one.words) == 1
    ]
    return "\n".join([HEAD, *contents, *(line for one in found for line in _section(one))]) + "\n"


def _section(found: Found) -> list[str]:
    command = found.command
    name = " ".join(("nightschool", *found.words))
    lines = ["", "#" * (1 + len(found.words)) + f" {name}", "", *_paragraphs(command.help or "")]
    lines += ["```text", _usage(name, command), "```", ""]
    lines += [_option(option) for option in command.params if isinstance(option, click.Option)]
    title, _, examples = _plain(command.epilog or "").partition("\n")
    if examples:
        if lines[-1]:
            lines.append("")
        # What a terminal shows beside an example is a shell's comment.
        shown = re.sub(r"(\S) {3,}(\S)", r"\1    # \2", inspect.cleandoc("\n" + examples))
        lines += [title, "", "```sh", shown, "```"]
    while not lines[-1]:
        lines.pop()
    return lines


def _usage(name: str, command: click.Command) -> str:
    parts = [name]
    if any(isinstance(param, click.Option) for param in command.params):
        parts.append("[OPTIONS]")
    for argument in command.params:
        if not isinstance(argument, click.Argument):
            continue
        shown = argument.metavar or (argument.name or "").upper()
        if argument.metavar is None and argument.nargs == -1:
            shown += "..."
        whole = argument.required or shown.startswith("[")
        parts.append(shown if whole else f"[{shown}]")
    if isinstance(command, click.Group):
        parts.append("[COMMAND ...]" if command.invoke_without_command else "COMMAND ...")
    return " ".join(parts)


def _option(option: click.Option) -> str:
    spelled = ", ".join((*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" {_value(option)}"
    notes = []
    if option.required:
        notes.append("required")
    if option.multiple:
        notes.append("may be repeated")
    if isinstance(option.show_default, str):
        notes.append(f"default: {option.show_default}")
    elif option.show_default and not option.is_flag:
        notes.append(f"default: `{option.default}`")
    said = f": {_escaped(option.help)}" if option.help else ""
    return f"- `{spelled}{value}`{said}" + (f" ({'; '.join(notes)})" if notes else "")


def _value(option: click.Option) -> str:
    kind = option.type
    if option.metavar:
        return option.metavar
    if isinstance(kind, click.Choice):
        return "|".join(str(choice) for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        low = "" if kind.min is None else f"{kind.min:g}"
        high = "" if kind.max is None else f"{kind.max:g}"
        return f"{low}..{high}"
    if isinstance(kind, click.Path):
        return "FILE" if kind.file_okay else "FOLDER"
    return "TEXT" if kind.name == "text" else kind.name.upper()


def _paragraphs(text: str) -> list[str]:
    """Help as paragraphs, each followed by an empty line; one that is set as it is stays so."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            lines += ["```text", _plain(paragraph), "```", ""]
        elif paragraph:
            lines += [_escaped(" ".join(paragraph.split())), ""]
    return lines


def _plain(text: str) -> str:
    return text.replace("\b\n", "").replace("\b", "").rstrip()


def _escaped(text: str) -> str:
    """Outside code, ``<name>`` and ``[section]`` are Markdown's own."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        parts[place] = re.sub(r"([<\[\]*])", r"\\\1", parts[place])
    return "`".join(parts)
