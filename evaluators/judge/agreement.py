"""How far the judge agrees with people, beyond chance; and from which score on people call an answer good.

Cohen's kappa (1960): (p - e) / (1 - e), with p the share of rows on which both say the same and e that
share had each said as often what it said, but by lot. The interval is the exact one of p (Clopper &
Pearson), with e as observed: it has a width also where all rows agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluators.intervals import clopper_pearson


@dataclass(frozen=True)
class Agreement:
    """Judge and people on the same rows."""

    rows: int
    agreed: int
    failures: int
    """Rows on which the judge gave no verdict: it agrees with nobody there."""
    kappa: float | None
    """None where there are no rows, or both say the same of all."""
    low: float | None
    high: float | None
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def told(self) -> str:
        if self.kappa is None:
            return f"{self.agreed} of {self.rows} labelled rows agree; kappa says nothing of them"
        return f"kappa {self.kappa:.2f} ({self.low:.2f} to {self.high:.2f}) on {self.rows} labelled rows"


def agreement(
    people: Sequence[Hashable], judge: Sequence[Hashable | None], level: float = 0.05
) -> Agreement:
    """Kappa of two raters on the same rows.

    Args:
        people: what people said of each row.
        judge: what the judge said; None: no verdict, which agrees with nothing.
        level: 1 - confidence of the two-sided interval.

    Raises ValueError when the lengths differ.
    """
    pairs = list(zip(people, judge, strict=True))
    rows = len(pairs)
    agreed = sum(ours == theirs for ours, theirs in pairs)
    failures = sum(theirs is None for _, theirs in pairs)
    if not rows:
        return Agreement(0, 0, 0, None, None, None, 1 - level)
    first, second = Counter(people), Counter(judge)
    chance = sum(first[name] * second[name] for name in first) / rows**2
    if chance >= 1:
        return Agreement(rows, agreed, failures, None, None, None, 1 - level)

    def kappa(share: float) -> float:
        return max(-1.0, (share - chance) / (1 - chance))

    low, high = map(kappa, clopper_pearson(agreed, rows, level))
    return Agreement(rows, agreed, failures, kappa(agreed / rows), low, high, 1 - level)


def best_cut(scores: Sequence[float], good: Sequence[bool], otherwise: float) -> float:
    """The score from which on an answer is called good, by the greatest kappa; ties: the lowest.

    ``otherwise``: where nothing can be learned, as all are good or all bad.
    """
    if len(set(good)) < 2:
        return otherwise
    found = []
    for cut in sorted(set(scores)):
        kappa = agreement(good, [score >= cut for score in scores]).kappa
        found.append((-(kappa if kappa is not None else -1.0), cut))
    return min(found)[1]


def cut_and_agreement(
    scores: Sequence[float | None], good: Sequence[bool], otherwise: float
) -> tuple[float, Agreement]:
    """The cut learned from all rows, and the agreement of cuts learned from the rows' other half.

    The agreement is that of rows which did not choose their own cut, so it flatters nobody. The rows
    are halved by their place, odd and even: give them in an order that says nothing.
    """

    def learned(places: Sequence[int]) -> float:
        known = [(scores[at], good[at]) for at in places if scores[at] is not None]
        return best_cut([float(s or 0) for s, _ in known], [g for _, g in known], otherwise)

    halves = [list(range(start, len(scores), 2)) for start in (0, 1)]
    cuts = [learned(halves[1]), learned(halves[0])]
    said = [
        None if score is None else score >= cuts[place % 2] for place, score in enumerate(scores)
    ]
    return learned(range(len(scores))), agreement(list(good), said)
