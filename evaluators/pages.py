"""A page of headings, tables, lists and one picture, written as Markdown or as HTML. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = (
    "body{font:14px sans-serif;max-width:900px;margin:2em auto;padding:0 1em}"
    "td,th{text-align:left;padding:2px 12px 2px 0;vertical-align:top;border-bottom:1px solid #ddd}"
    "table{border-collapse:collapse}svg{max-width:640px}"
)


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Items:
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    names: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An SVG, and the words that stand for it."""

    svg: str
    words: str


Block = Heading | Words | Items | Table | Picture


def markdown(title: str, blocks: Sequence[Block], picture: str) -> str:
    """The page as Markdown; ``picture`` is the address of its picture."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Words(text):
                parts.append(text)
            case Items(lines):
                parts.append("\n".join(f"- {line}" for line in lines))
            case Table(names, rows):
                lines = [_row(names), _row(["---"] * len(names)), *map(_row, rows)]
                parts.append("\n".join(lines))
            case Picture(_, words):
                parts.append(f"![{words}]({picture})")
    return "\n\n".join(parts) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The page by itself: no script, no font, nothing from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    ]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{escape(text)}</h2>")
            case Words(text):
                parts.append(f"<p>{escape(text)}</p>")
            case Items(lines):
                parts.append(f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")
            case Table(names, rows):
                cells = _cells("th", names) + "".join(_cells("td", row) for row in rows)
                parts.append(f"<table>{cells}</table>")
            case Picture(svg, _):
                parts.append(svg)
    return "\n".join(parts) + "</html>\n"


def _row(cells: Sequence[str]) -> str:
    said = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(said)} |"


def _cells(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
