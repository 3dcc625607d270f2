"""Markdown as the tests of the documents read it: fences, inline code, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    line: int
    language: str
    text: str


def fences(document: str) -> Iterator[Fence]:
    for found in _FENCE.finditer(document):
        yield Fence(document.count("\n", 0, found.start()) + 1, found[2], found[3])


def prose(document: str) -> str:
    """The document without its fences, with as many lines."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), document)


def inline_code(document: str) -> Iterator[str]:
    """What stands between backticks outside fences, on one line each."""
    for found in re.finditer(r"`([^`]+)`", prose(document)):
        yield " ".join(found[1].split())


def anchors(document: str) -> set[str]:
    """The ids that GitHub gives a document's headings."""
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(document), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        made.add(f"{slug}-{count}" if count else slug)
    return made


def broken_links(path: Path) -> list[str]:
    """Links of a document to files or headings that are not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name) if name else path
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in anchors(there.read_text())
        ):
            broken.append(target)
    return broken
