"""What a recognizer reports, and how reports that overlap are settled."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
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


def settle(ranked: Iterable[Iterable[Finding]]) -> list[Finding]:
    """Findings without overlaps, in order of place.

    Args:
        ranked: the reports of several recognizers, the most trusted first: it wins an overlap.
    """
    starts: list[int] = []
    ends: dict[int, Finding] = {}
    for findings in ranked:
        for finding in findings:
            place = bisect_left(starts, finding.end)
            # Of those that begin before our end only the last can reach over our start.
            if place and ends[starts[place - 1]].end > finding.start:
                continue
            insort(starts, finding.start)
            ends[finding.start] = finding
    return [ends[start] for start in starts]
