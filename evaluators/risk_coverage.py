"""Errors among the shown answers against the share that is shown, as a curve and as a picture. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_POINTS = 100
WIDTH, HEIGHT, MARGIN = 640, 300, 48
_COLOURS = ("#1f5fbf", "#999999", "#b36b00", "#7a3e9d")


class Point(NamedTuple):
    coverage: float
    """Share of all rows that is shown."""
    risk: float
    """Share of the shown that is wrong."""


def risk_coverage(
    confidences: Sequence[float | None], correct: Sequence[float]
) -> tuple[Point, ...]:
    """One point per confidence that occurs, surest first; at most ``MAX_POINTS``.

    Args:
        confidences: None (or what is not finite) for an answer that is never shown.
        correct: 0 to 1 per row.
    """
    ranked = sorted(
        (
            (value, 1.0 - right)
            for value, right in zip(confidences, correct, strict=True)
            if value is not None and math.isfinite(value)
        ),
        key=lambda row: -row[0],
    )
    found: list[Point] = []
    wrong = 0.0
    for place, (value, loss) in enumerate(ranked, 1):
        wrong += loss
        if place == len(ranked) or ranked[place][0] != value:
            found.append(Point(place / len(correct), wrong / place))
    stride = -(-len(found) // MAX_POINTS) or 1
    # Counted from the end: the last point, everything that passes its checks, is always there.
    return tuple(found[::-1][::stride][::-1])


def draw(
    curves: Mapping[str, Sequence[Point]], risk: float, served: Point | None, needed: float
) -> str:
    """An SVG of the curves, the first one in front.

    Args:
        risk: tolerated among shown answers; a dashed line.
        served: where the certified threshold lies on these rows; a dot.
        needed: least coverage that is worth serving; a dashed line.
    """
    highest = max([point.risk for points in curves.values() for point in points], default=0.0)
    top = min(1.0, max(1.25 * highest, 2 * risk))

    def place(coverage: float, wrong: float) -> tuple[float, float]:
        return (
            MARGIN + (WIDTH - 2 * MARGIN) * min(coverage, 1.0),
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(wrong / top, 1.0),
        )

    left, floor = place(0, 0)
    right, ceiling = place(1, top)
    parts = []
    for number, (name, points) in reversed(list(enumerate(curves.items()))):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        width = 2.5 if not number else 1
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{line}"/>'
        )
        parts.append(
            f'<text x="{left + 10}" y="{ceiling + 14 * (number + 1)}" fill="{colour}">{name}</text>'
        )
    _, tolerated = place(0, risk)
    least, _ = place(needed, 0)
    parts.append(
        f'<path d="M{left} {tolerated:.1f}H{right}M{least:.1f} {ceiling}V{floor}" fill="none" '
        'stroke="#2b7a3d" stroke-dasharray="4"/>'
    )
    if served is not None:
        x, y = place(*served)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#b3261e"/>')
    labels = (
        (left, 24.0, "start", "errors among the shown answers"),
        (right, HEIGHT - 16.0, "end", "share of the calls that is shown: 100 %"),
        (left, HEIGHT - 16.0, "start", "0"),
        (left - 6, ceiling + 4, "end", f"{top:.0%}"),
        (left - 6, tolerated + 4, "end", f"{risk:.0%}"),
    )
    parts += [
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in labels
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        f'<path d="M{left} {ceiling}V{floor}H{right}" fill="none" stroke="black"/>\n'
        f"{body}\n</svg>\n"
    )
