"""What a recognizer reports, and how reports that overlap are settled."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """A piece of personal data in a text."""

    kind: str
    """Upper case, e.g. ``EMAIL``."""
    start: int
    end: int
    """Offsets in characters, end exclusive."""


Recognizer = Callable[[str], Iterable[Finding]]
"""Finds its kinds in a text, in time linear in the text's length."""


def settle(ranked: Iterable[Iterable[Finding]]) -> tuple[list[Finding], list[Finding]]:
    """(findings without overlaps in order of place, those that gave way but reach further).

    Args:
        ranked: the reports of several recognizers, the most trusted first: it wins an overlap.
    """
    starts: list[int] = []
    ends: dict[int, Finding] = {}
    given_way: list[Finding] = []
    for findings in ranked:
        for finding in findings:
            place = bisect_left(starts, finding.end)
            # Of those that begin before our end only the last can reach over our start.
            last = ends[starts[place - 1]] if place else None
            if last is not None and last.end > finding.start:
                if last.start > finding.start or last.end < finding.end:
                    given_way.append(finding)
                continue
            insort(starts, finding.start)
            ends[finding.start] = finding
    return [ends[start] for start in starts], given_way


def gaps(findings: Sequence[Finding], length: int) -> Iterator[tuple[int, int]]:
    """What lies between findings in order of place: (start, end), none of them empty."""
    place = 0
    for finding in findings:
        if finding.start > place:
            yield place, finding.start
        place = finding.end
    if place < length:
        yield place, length
