"""A rollout as one HTML page: its e-processes against their thresholds, its steps, and who acted.

Drawn as SVG by hand: two lines and some marks need no plotting library, and the page needs no script,
no font and no network, so it can be kept beside the evidence for as long as that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from flows.exposure import weights_of
from flows.observing import observe
from flows.replaying import last_records
from flows.tending import MAX_EVENTS
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import Event
from serving.registry.records import Rollout

PREFIX = "reports/rollouts/"
LOOKS = 40
"""Points of a line: the log is judged so often, as it was at that many moments."""
WIDTH, HEIGHT, LEFT, TOP, GAP = 860, 240, 64, 24, 48
COLOURS = {"e_bad": "#b3261e", "e_good": "#1b6e3c", "weight": "#33658a"}


@dataclass(frozen=True)
class Look:
    """What the test said at one moment."""

    time: datetime
    sessions: int
    e_bad: float
    e_good: float


def looks(context: Context, rollout: Rollout, until: datetime, most: int = LOOKS) -> list[Look]:
    """The e-processes of the canary at up to ``most`` moments, evenly spread over its calls."""
    calls, feedback = last_records(context, rollout)
    weights = weights_of(rollout.id, context.registry.events(rollout.task_id, MAX_EVENTS))
    exposed = sorted(call.time for call in calls if call.answered_by.route_version in weights)
    if not exposed:
        return []
    begin = exposed[0]
    found = []
    for number in range(1, most + 1):
        now = begin + (until - begin) * number / most
        seen = observe(
            rollout,
            calls,
            feedback,
            now=now,
            weights=weights,
            step_route_version=rollout.step_route_version,
            loaded=True,
        )
        canary = seen.evidence["canary"]
        found.append(Look(now, seen.canary_sessions, canary["e_bad"], canary["e_good"]))
    return found


def picture(context: Context, rollout_id: str, now: datetime | None = None) -> str:
    """The page. Raises UnknownRollout, ObjectStoreError."""
    rollout = context.registry.rollout(rollout_id)
    until = (now or utc_now()) if rollout.open else rollout.entered
    events = list(reversed(context.registry.events(rollout_id, MAX_EVENTS)))
    routes = list(reversed(context.registry.events(rollout.task_id, MAX_EVENTS)))
    return page(rollout, looks(context, rollout, until), events, routes, until)


def keep_picture(context: Context, rollout_id: str) -> str:
    """Draw it and put it among the reports; the object's key."""
    key = f"{PREFIX}{rollout_id}/picture.html"
    context.store.put(key, picture(context, rollout_id).encode())
    return key


def page(
    rollout: Rollout,
    seen: Sequence[Look],
    events: Sequence[Event],
    routes: Sequence[Event],
    until: datetime,
) -> str:
    """The HTML of what was read."""
    terms = rollout.policy
    rows = "".join(
        f"<tr><td>{event.time:%Y-%m-%d %H:%M:%S}</td><td>{escape(event.what)}</td>"
        f"<td>{escape(event.actor)}</td><td>{escape(event.why)}</td></tr>"
        for event in events
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(rollout.adapter)}</title><style>body{{font:14px sans-serif;max-width:900px;"
        "margin:2em auto}td,th{text-align:left;padding:2px 10px 2px 0;vertical-align:top}</style>"
        f"<h1>{escape(rollout.adapter)} is {rollout.state}</h1><p>{escape(rollout.reason)}</p>"
        f"<p>Margin {terms.margin:g}; worse is said at an e-value of {1 / terms.alpha_bad:g}, "
        f"as good at {1 / terms.alpha_good:g}; steps "
        f"{', '.join(f'{step:.0%}' for step in terms.steps)}.</p>"
        f"{_svg(rollout, seen, routes, until)}"
        f"<table><tr><th>time (UTC)<th>what<th>who<th>why</tr>{rows}</table></html>"
    )


def _svg(rollout: Rollout, seen: Sequence[Look], routes: Sequence[Event], until: datetime) -> str:
    begin = rollout.created
    span = max((until - begin).total_seconds(), 1e-9)

    def x(time: datetime) -> float:
        share = (time - begin).total_seconds() / span
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - 16)

    limits = {"e_bad": 1 / rollout.policy.alpha_bad, "e_good": 1 / rollout.policy.alpha_good}
    highest = max([2 * max(limits.values()), *(max(look.e_bad, look.e_good) for look in seen)])
    top = min(math.log10(highest), 12.0)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - min(max(math.log10(max(value, 1.0)) / top, 0.0), 1.0))

    parts = [_text(LEFT, 14, "evidence (e-value, logarithmic)")]
    for place, (name, limit) in enumerate(limits.items()):
        label = "worse" if name == "e_bad" else "as good"
        parts.append(_line([(LEFT, y(limit)), (WIDTH - 16, y(limit))], COLOURS[name], dashed=True))
        parts.append(_text(WIDTH - 220 + 90 * place, 14, label, COLOURS[name]))
        parts.append(_text(4, y(limit) + 4 + 12 * place, f"{limit:g}", COLOURS[name]))
        points = [(x(look.time), y(getattr(look, name))) for look in seen]
        if points:
            parts.append(_line([(points[0][0], y(1.0)), *points], COLOURS[name]))
    if not seen:
        parts.append(_text(LEFT + 20, TOP + HEIGHT / 2, "no session has been exposed"))
    base = TOP + HEIGHT + GAP
    parts += _weights(rollout, routes, x, base, until)
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - 16}" height="{HEIGHT}"'
    return (
        f'<svg viewBox="0 0 {WIDTH} {base + 150}" role="img" '
        f'aria-label="e-values and canary share of a rollout">'
        f'{frame} fill="none" stroke="#999"/>{"".join(parts)}</svg>'
    )


def _weights(
    rollout: Rollout, routes: Sequence[Event], x: object, base: float, until: datetime
) -> list[str]:
    """The canary's share over time, as a staircase."""
    assert callable(x)
    parts = [_text(LEFT, base - 8, "share of sessions in the canary")]
    stairs: list[tuple[float, float]] = [(x(rollout.created), base + 100)]
    for event in routes:
        after = event.current if event.what.startswith("route.") else None
        before = event.previous or {}
        if after is None or rollout.id not in (after.get("rollout_id"), before.get("rollout_id")):
            continue
        share = after["weight"] if after.get("rollout_id") == rollout.id else 0.0
        level = base + 100 * (1 - share)
        if level != stairs[-1][1]:
            stairs += [(x(event.time), stairs[-1][1]), (x(event.time), level)]
            parts.append(_text(x(event.time) + 4, level - 4, f"{share:.0%}"))
    stairs.append((x(until), stairs[-1][1]))
    for place, time in ((LEFT, rollout.created), (WIDTH - 150, until)):
        parts.append(_text(place, base + 120, f"{time:%Y-%m-%d %H:%M:%S}"))
    return [*parts, _line(stairs, COLOURS["weight"])]


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'


def _text(x: float, y: float, text: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="{colour}">{escape(text)}</text>'
