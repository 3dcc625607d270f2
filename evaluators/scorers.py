"""Scorers of one's own: an installed package names them as entry points of ``nightschool.scorers``.

The entry point is a function that takes the options of the settings and gives a ``Scorer``:

    [project.entry-points."nightschool.scorers"]
    politeness = "our_scores:make_politeness"

Scorers run in a process of their own (``scorer_process.py``), so that one which hangs or crashes costs
its own scores and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

GROUP = "nightschool.scorers"
Message = Mapping[str, Any]


class Scorer(Protocol):
    """Scores one answer, 0 (worthless) to 1 (as good as can be).

    Called with the right answer, the answer to score (both OpenAI assistant messages) and the OpenAI
    request. The same arguments give the same score. What it raises, and a score that is no number
    from 0 to 1, is a failure: the answer counts as lost.
    """

    def __call__(self, expected: Message, got: Message, request: Mapping[str, Any], /) -> float: ...


Factory = Callable[[Mapping[str, Any]], Scorer]


class ScorerUnusable(Exception):
    """It cannot be made; the message says why, without quoting what was scored."""


class BadScore(Exception):
    """What a scorer gave is no score."""


def make_scorer(use: str, options: Mapping[str, Any]) -> Scorer:
    """The scorer that an installed package offers under that name. Raises ScorerUnusable."""
    found = entry_points(group=GROUP, name=use)
    if not found:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        raise ScorerUnusable(f"no installed package offers the scorer {use!r}; offered: {known}")
    if len({point.value for point in found}) > 1:
        raise ScorerUnusable(f"several installed packages offer a scorer {use!r}")
    try:
        factory: Factory = next(iter(found)).load()
        scorer = factory(dict(options))
    except Exception as error:
        raise ScorerUnusable(
            f"the scorer {use!r} cannot be made: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if not callable(scorer):
        raise ScorerUnusable(f"the scorer {use!r} cannot be called")
    return scorer


def checked_score(value: object) -> float:
    """The score as a float. Raises BadScore for what is no number from 0 to 1."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadScore(f"a {type(value).__name__} is no score") from None
    if isinstance(value, str | bytes) or math.isnan(number):
        raise BadScore(
            "a text is no score" if isinstance(value, str | bytes) else "NaN is no score"
        )
    if not 0 <= number <= 1:
        raise BadScore("a score lies between 0 and 1")
    return number
