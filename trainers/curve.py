"""The training curve of a run as a picture: SVG, which a browser and a diff both read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 640, 300, 48
MAX_POINTS = 400
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    points: Sequence[Point]
    colour: str
    width: float
    dotted: bool = False
    """A dot at each point too."""


def read_curve(events: Path) -> tuple[list[Point], list[Point]]:
    """(step, training loss) and (step, validation loss), in the order of steps; the last word of each
    step counts, since a killed run does some steps twice."""
    training: dict[float, float] = {}
    validation: dict[float, float] = {}
    with events.open() as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("validation_loss") is not None:
                validation[event["step"]] = event["validation_loss"]
            elif event.get("tokens"):
                training[event["step"]] = event["loss"]
    return sorted(training.items()), sorted(validation.items())


def draw_curve(training: Sequence[Point], validation: Sequence[Point], kept_step: int) -> str:
    """An SVG of both losses (nats per answer token) over the steps; a bar marks the kept step."""
    return draw_lines(
        (Line(training, "#999999", 1), Line(validation, "#1f5fbf", 2)),
        "loss, nats per answer token: training grey, validation blue",
        axis="step",
        mark=(kept_step, f"kept {kept_step}"),
    )


def draw_lines(
    lines: Sequence[Line],
    title: str,
    *,
    axis: str,
    top: float | None = None,
    mark: tuple[float, str] | None = None,
) -> str:
    """An SVG of lines over one axis that starts at 0, as both axes do.

    Args:
        axis: what the horizontal axis counts.
        top: upper end of the vertical axis; None: the highest point.
        mark: where a dashed bar stands, and what it says.
    """
    points = [point for line in lines for point in line.points]
    right = max([x for x, _ in points], default=1) or 1
    top = top or max([y for _, y in points], default=1) or 1

    def place(point: Point) -> Point:
        x, y = point
        return (
            MARGIN + (WIDTH - 2 * MARGIN) * x / right,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(0.0, y) / top,
        )

    def drawn(line: Line) -> str:
        placed = [place(point) for point in _thin(line.points)]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dots = "".join(
            f'\n<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>'
            for x, y in placed
            if line.dotted
        )
        return (
            f'<polyline fill="none" stroke="{line.colour}" stroke-width="{line.width}" '
            f'points="{text}"/>{dots}'
        )

    floor, ceiling = HEIGHT - MARGIN, MARGIN
    labels: list[tuple[float, float, str, str]] = [
        (MARGIN, HEIGHT - 16, "start", f"{axis} 0"),
        (WIDTH - MARGIN, HEIGHT - 16, "end", f"{axis} {right:g}"),
        (MARGIN - 6, MARGIN, "end", f"{top:.2f}"),
        (MARGIN - 6, HEIGHT - MARGIN, "end", "0"),
        (MARGIN, 24, "start", title),
    ]
    bar = ""
    if mark is not None:
        at, _ = place((min(mark[0], right), 0))
        labels.append((at, HEIGHT - MARGIN + 14, "middle", mark[1]))
        bar = f'<path d="M{at:.1f} {ceiling}V{floor}" stroke="green" stroke-dasharray="4"/>\n'
    texts = "\n".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in labels
    )
    curves = "\n".join(map(drawn, lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        f'<path d="M{MARGIN} {ceiling}V{floor}H{WIDTH - MARGIN}" fill="none" stroke="black"/>\n'
        f"{bar}{curves}\n{texts}\n</svg>\n"
    )


def _thin(series: Sequence[Point]) -> Sequence[Point]:
    """At most ``MAX_POINTS`` of them, the last included."""
    stride = -(-len(series) // MAX_POINTS) or 1
    thinned = list(series[::stride])
    return [*thinned, series[-1]] if series and thinned[-1] != series[-1] else thinned
