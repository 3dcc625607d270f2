"""Where is the drift: what a column looked like before and now, and which calls show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.distances import Kind

EXAMPLES = 5
CHANGES = 5
_SPREAD = 0.25
"""Of the distance: a smaller shift of the mean is a change of spread, seen at both ends."""


@dataclass(frozen=True)
class Finding:
    """One column that drifted."""

    column: str
    kind: Kind
    distance: float
    """Standard deviations of the reference (numbers), Jensen-Shannon distance (categories)."""
    threshold: float
    before: dict[str, float]
    """``mean`` and ``median`` of a number; shares of the values that changed most."""
    now: dict[str, float]
    examples: tuple[str, ...]
    """Ids of current calls that show it best."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> str:
        """In a few words."""
        size = f"{self.column} {self.distance:.2f} (limit {self.threshold:.2f})"
        if self.kind == "number":
            return f"{size}: mean {self.before['mean']:.4g}, now {self.now['mean']:.4g}"
        # What grew most, since what is new is what can be shown.
        name = max(self.now, key=lambda value: self.now[value] - self.before[value])
        return f"{size}: {name[:60]} {self.before[name]:.0%}, now {self.now[name]:.0%}"


def locate(
    column: str,
    kind: Kind,
    values: Sequence[Any],
    in_reference: NDArray[np.bool_],
    call_ids: Sequence[str],
    distance: float,
    threshold: float,
) -> Finding:
    """What changed in a column that drifted.

    Args:
        values: of both windows; of a category None where a row has none, of a number NaN.
    """
    look = _number if kind == "number" else _category
    before, now, places = look(values, in_reference)
    # One call in a window may be there twice; an id that is not known shows nothing.
    shown = [call_ids[place] for place in places if call_ids[place]]
    return Finding(
        column, kind, distance, threshold, before, now, tuple(dict.fromkeys(shown))[:EXAMPLES]
    )


def _number(
    values: Sequence[Any], in_reference: NDArray[np.bool_]
) -> tuple[dict[str, float], dict[str, float], list[int]]:
    numbers = np.asarray(values, dtype=float)
    there = ~np.isnan(numbers)
    old, new = numbers[there & in_reference], numbers[there & ~in_reference]
    middle, shift = float(np.median(old)), float(new.mean() - old.mean())
    away = numbers - middle
    if abs(shift) < _SPREAD * float(np.abs(new - middle).mean()):
        away = np.abs(away)
    elif shift < 0:
        away = -away
    places = np.flatnonzero(there & ~in_reference)
    order = places[np.argsort(-away[places], kind="stable")]
    return (
        {"mean": float(old.mean()), "median": middle},
        {"mean": float(new.mean()), "median": float(np.median(new))},
        [int(place) for place in order[: 4 * EXAMPLES]],
    )


def _category(
    values: Sequence[Any], in_reference: NDArray[np.bool_]
) -> tuple[dict[str, float], dict[str, float], list[int]]:
    sides: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    for value, old in zip(values, in_reference, strict=True):
        if isinstance(value, str):
            sides[0 if old else 1][value] += 1
    shares = [
        {name: count / side.total() for name, count in side.items()} if side else {}
        for side in sides
    ]
    change = {
        name: shares[1].get(name, 0.0) - shares[0].get(name, 0.0)
        for name in {*shares[0], *shares[1]}
    }
    grown = max(change, key=lambda name: (change[name], name))
    most = sorted(change, key=lambda name: (name != grown, -abs(change[name]), name))[:CHANGES]
    places = [
        place for place, value in enumerate(values) if value == grown and not in_reference[place]
    ]
    return (
        {name: shares[0].get(name, 0.0) for name in most},
        {name: shares[1].get(name, 0.0) for name in most},
        places[: 4 * EXAMPLES],
    )
