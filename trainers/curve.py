"""The training curve of a run as a picture: SVG, which a browser and a diff both read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 640, 300, 48
MAX_POINTS = 400
Point = tuple[float, float]


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
    points = [*training, *validation]
    right = max([step for step, _ in points], default=1) or 1
    top = max([loss for _, loss in points], default=1) or 1

    def place(point: Point) -> Point:
        step, loss = point
        return (
            MARGIN + (WIDTH - 2 * MARGIN) * step / right,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(0.0, loss) / top,
        )

    def line(series: Sequence[Point], colour: str, width: float) -> str:
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, _thin(series)))
        return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{text}"/>'

    kept, _ = place((min(kept_step, right), 0))
    labels = (
        (MARGIN, HEIGHT - 16, "start", "step 0"),
        (WIDTH - MARGIN, HEIGHT - 16, "end", f"step {right:g}"),
        (MARGIN - 6, MARGIN, "end", f"{top:.2f}"),
        (MARGIN - 6, HEIGHT - MARGIN, "end", "0"),
        (MARGIN, 24, "start", "loss, nats per answer token: training grey, validation blue"),
        (kept, HEIGHT - MARGIN + 14, "middle", f"kept {kept_step}"),
    )
    texts = "\n".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in labels
    )
    floor, ceiling = HEIGHT - MARGIN, MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        f'<path d="M{MARGIN} {ceiling}V{floor}H{WIDTH - MARGIN}" fill="none" stroke="black"/>\n'
        f'<path d="M{kept:.1f} {ceiling}V{floor}" stroke="green" stroke-dasharray="4"/>\n'
        f"{line(training, '#999999', 1)}\n{line(validation, '#1f5fbf', 2)}\n{texts}\n</svg>\n"
    )


def _thin(series: Sequence[Point]) -> Sequence[Point]:
    """At most ``MAX_POINTS`` of them, the last included."""
    stride = -(-len(series) // MAX_POINTS) or 1
    thinned = list(series[::stride])
    return [*thinned, series[-1]] if series and thinned[-1] != series[-1] else thinned
