"""Cut a stream of bytes into JSON values, holding one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from infra.calls.codec import Problem

_MARK = re.compile(rb'[\\"{}\[\]]')
_BLANK = b" \t\r\n"
_BETWEEN = b" \t\r\n,[]"

_STRAY = Problem("text that belongs to no object")


class Piece(NamedTuple):
    number: int
    """Counted from 1."""
    content: bytes | Problem


def lines(blocks: Iterable[bytes], max_bytes: int) -> Iterator[Piece]:
    """The lines that are not blank; one that is too long is a Problem, and the next are read on."""
    number, parts, held = 1, [], 0
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            held += end - start
            if held <= max_bytes:
                parts.append(block[start:end])
            yield from _line(number, parts, held, max_bytes)
            number, parts, held, start = number + 1, [], 0, end + 1
        held += len(block) - start
        if held <= max_bytes:
            parts.append(block[start:])
        else:
            parts = []
    yield from _line(number, parts, held, max_bytes)


def values(blocks: Iterable[bytes], max_bytes: int) -> Iterator[Piece]:
    """The objects of a JSON document: those of the array that it is, or one after another.

    An object that is too large is a Problem, and so is text between objects; the next ones are read
    on. A document that ends inside an object ends with a Problem.
    """
    number, depth, base = 0, 0, 0
    in_string, escaped, seen = False, False, False
    skip, stray = -1, False
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        place = 0  # where the value begins in this block, or what stands between values
        for mark in _MARK.finditer(block):
            at, kind = mark.start(), mark.group()
            if escaped:
                escaped = False
                if at == skip:
                    continue
            if in_string:
                if kind == b"\\":
                    escaped, skip = True, at + 1
                elif kind == b'"':
                    in_string = False
            elif kind == b'"':
                in_string = depth > base
            elif kind in b"{[":
                if depth == base:
                    stray = stray or bool(block[place:at].strip(_BETWEEN))
                    place = at
                if not seen and kind == b"[":
                    base = 1
                    place = at + 1
                elif depth == base:
                    if stray:
                        yield Piece(number + 1, _STRAY)
                    parts, held, stray = [], 0, False
                    number += 1
                seen = True
                depth += 1
            elif kind in b"}]" and depth > 0:
                depth -= 1
                if depth == base:
                    held += at + 1 - place
                    if held <= max_bytes:
                        parts.append(block[place : at + 1])
                    yield from _line(number, parts, held, max_bytes)
                    parts, held, place = [], 0, at + 1
        if escaped:
            skip -= len(block)
            # The byte after a backslash at the block's end is the next block's first.
            if skip < 0:
                escaped = False
        if depth <= base:
            stray = stray or bool(block[place:].strip(_BETWEEN))
            continue
        held += len(block) - place
        if held <= max_bytes:
            parts.append(block[place:])
        else:
            parts = []
    if stray:
        yield Piece(number + 1, _STRAY)
    if depth > base:
        yield Piece(number, Problem("the document ends inside an object"))
    elif base and depth == base:
        yield Piece(number + 1, Problem("the document ends inside its list"))
    elif not number and not seen and not stray:
        yield Piece(1, Problem("no JSON object in the file"))


def _line(number: int, parts: list[bytes], held: int, max_bytes: int) -> Iterator[Piece]:
    if held > max_bytes:
        yield Piece(number, Problem(f"longer than {max_bytes} bytes"))
        return
    content = b"".join(parts).strip(_BLANK)
    if content:
        yield Piece(number, content)
