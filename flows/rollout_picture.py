"""A rollout as a picture: its e-processes against their thresholds, its steps, and who acted."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape

from flows.drawing import Line, Mark, NoPng, Sheet, Words, box, png, svg
from flows.exposure import weights_of
from flows.observing import evidence_policy, observe
from flows.replaying import last_records
from flows.tending import MAX_EVENTS
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import Event
from serving.registry.records import TEACHER, Rollout

PREFIX = "reports/rollouts/"
LOOKS = 40
"""Points of a line: the log is judged so often, as it was at that many moments."""
WIDTH, HEIGHT, LEFT, TOP, GAP, TITLE = 860, 240, 64, 24, 48, 18
COLOURS = {"e_bad": "#b3261e", "e_good": "#1b6e3c", "both": "#444444", "weight": "#33658a"}


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


@dataclass(frozen=True)
class Drawn:
    """A rollout's picture in each form."""

    rollout: Rollout
    page: str
    """HTML: the sheet as SVG, the terms, and who did what."""
    sheet: Sheet

    def in_form(self, suffix: str) -> bytes:
        """``.html``, ``.svg`` or ``.png``. Raises NoPng; KeyError for any other form."""
        forms: dict[str, Callable[[], bytes]] = {
            ".html": self.page.encode,
            ".svg": lambda: svg(self.sheet).encode(),
            ".png": lambda: png(_titled(self.rollout, self.sheet)),
        }
        return forms[suffix]()


FORMS = (".html", ".png", ".svg")


def draw(context: Context, rollout_id: str, now: datetime | None = None) -> Drawn:
    """Raises UnknownRollout, ObjectStoreError."""
    rollout = context.registry.rollout(rollout_id)
    until = (now or utc_now()) if rollout.open else rollout.entered
    events = list(reversed(context.registry.events(rollout_id, MAX_EVENTS)))
    routes = list(reversed(context.registry.events(rollout.task_id, MAX_EVENTS)))
    drawn = sheet(rollout, looks(context, rollout, until), routes, until)
    return Drawn(rollout, page(rollout, drawn, events), drawn)


def keep_picture(context: Context, rollout_id: str) -> tuple[str, str | None]:
    """Draw it and put it among the reports: the keys of the page, and of the image where one can be made."""
    drawn = draw(context, rollout_id)
    key = f"{PREFIX}{rollout_id}/picture"
    context.store.put(f"{key}.html", drawn.in_form(".html"))
    try:
        context.store.put(f"{key}.png", drawn.in_form(".png"))
    except NoPng:
        return f"{key}.html", None
    return f"{key}.html", f"{key}.png"


def page(
    rollout: Rollout,
    drawn: Sheet,
    events: Sequence[Event],
) -> str:
    """The HTML of what was read."""
    terms = rollout.policy
    tolerated = evidence_policy(terms).tolerated(rollout.champion in (None, TEACHER))
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
        f"<p>Promoted within {terms.margin:g}, rolled back beyond {tolerated:g}; "
        f"worse is said at an e-value of {1 / terms.alpha_bad:g}, "
        f"as good at {1 / terms.alpha_good:g}; steps "
        f"{', '.join(f'{step:.0%}' for step in terms.steps)}.</p>"
        f"{svg(drawn)}"
        f"<table><tr><th>time (UTC)<th>what<th>who<th>why</tr>{rows}</table></html>"
    )


def sheet(
    rollout: Rollout, seen: Sequence[Look], routes: Sequence[Event], until: datetime
) -> Sheet:
    """The e-values over time against their thresholds, and the canary's share below."""
    begin = rollout.created
    span = max((until - begin).total_seconds(), 1e-9)
    right = WIDTH - 16

    def x(time: datetime) -> float:
        share = (time - begin).total_seconds() / span
        return LEFT + min(max(share, 0.0), 1.0) * (right - LEFT)

    limits = {"e_bad": 1 / rollout.policy.alpha_bad, "e_good": 1 / rollout.policy.alpha_good}
    highest = max([2 * max(limits.values()), *(max(look.e_bad, look.e_good) for look in seen)])
    top = min(math.log10(highest), 12.0)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - min(max(math.log10(max(value, 1.0)) / top, 0.0), 1.0))

    marks: list[Mark] = [box(LEFT, TOP, right, TOP + HEIGHT)]
    marks.append(Words(LEFT, 14, "evidence (e-value, logarithmic)"))
    one = limits["e_bad"] == limits["e_good"]
    for place, (name, limit) in enumerate(limits.items()):
        label = "worse" if name == "e_bad" else "as good"
        marks.append(Words(WIDTH - 220 + 90 * place, 14, label, COLOURS[name]))
        colour = COLOURS["both"] if one else COLOURS[name]
        if place == 0 or not one:
            marks.append(Line([(LEFT, y(limit)), (right, y(limit))], colour, dashed=True))
            marks.append(Words(4, y(limit) + 4 + 12 * place, f"{limit:g}", colour))
        points = [(x(look.time), y(getattr(look, name))) for look in seen]
        if points:
            marks.append(Line([(points[0][0], y(1.0)), *points], COLOURS[name]))
    if not seen:
        marks.append(Words(LEFT + 20, TOP + HEIGHT / 2, "no session has been exposed"))
    base = TOP + HEIGHT + GAP
    marks += _weights(rollout, routes, x, base, until)
    return Sheet(WIDTH, base + 150, marks, "e-values and canary share of a rollout")


def _weights(
    rollout: Rollout,
    routes: Sequence[Event],
    x: Callable[[datetime], float],
    base: float,
    until: datetime,
) -> list[Mark]:
    """The canary's share over time, as a staircase."""
    marks: list[Mark] = [Words(LEFT, base - 8, "share of sessions in the canary")]
    stairs: list[tuple[float, float]] = [(x(rollout.created), base + 100)]
    for event in routes:
        after = event.current if event.what.startswith("route.") else None
        before = event.previous or {}
        if after is None or rollout.id not in (after.get("rollout_id"), before.get("rollout_id")):
            continue
        share = after["weight"] if after.get("rollout_id") == rollout.id else 0.0
        if after.get("champion") == rollout.adapter:
            share = 1.0
        level = base + 100 * (1 - share)
        if level != stairs[-1][1]:
            stairs += [(x(event.time), stairs[-1][1]), (x(event.time), level)]
            marks.append(Words(min(x(event.time) + 4, WIDTH - 48), level - 4, f"{share:.0%}"))
    stairs.append((x(until), stairs[-1][1]))
    for place, time in ((LEFT, rollout.created), (WIDTH - 150, until)):
        marks.append(Words(place, base + 120, f"{time:%Y-%m-%d %H:%M:%S}"))
    return [*marks, Line(stairs, COLOURS["weight"])]


def _titled(rollout: Rollout, drawn: Sheet) -> Sheet:
    """With what the page says in words, for an image that travels without its page."""
    lines = [f"{rollout.adapter} is {rollout.state}", *textwrap.wrap(rollout.reason, 130)[:3]]
    room = TITLE * len(lines) + 12
    words = [Words(16, 20 + TITLE * number, line, "#000000") for number, line in enumerate(lines)]
    moved = [
        replace(mark, y=mark.y + room)
        if isinstance(mark, Words)
        else replace(mark, points=[(x, y + room) for x, y in mark.points])
        for mark in drawn.marks
    ]
    return replace(drawn, height=drawn.height + room, marks=[*words, *moved])
