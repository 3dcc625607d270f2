"""Choose the confidence above which a small model's answer may be shown.

Learn-then-Test with fixed-sequence testing (Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then
Test: Calibrating Predictive Algorithms to Achieve Risk Control", 2021, section 4.2). The rows are
ranked by confidence; the hypothesis at rank k says "among answers at least this confident, more
than ``risk`` are wrong". The ranks are tested from the most confident end downward, each at the full
level, and the first one that is not rejected ends it: the last one rejected is the threshold.

Given the confidence just below rank k, the k rows above it are independent draws from the answers
that would be shown, so the errors among them are binomial and the p-value is exact (for graded
correctness: the Hoeffding-Bentkus bound). The sequence starts at a rank fixed before any label is
seen, because a rank too small to be rejected without a single error would end it at once.

What it rests on: rows are exchangeable with future calls, and lowering the threshold does not make
the shown answers better (confidence may be useless, only not perverse in the middle of its range).
With that, the chance that the threshold's true risk is above ``risk`` is at most ``level``.

How much evidence a certificate takes (``rows_needed``): at level 0.05, zero errors among the shown
certify a risk of 5 % from 59 rows on, one error from 93, two from 124; a risk of 10 % from 29, 46
and 61. With fewer rows nothing certifies, whatever the model does, and nothing is shown.

Where several scores of confidence compete, each walks down its own ranks at ``level`` divided by
their number: fixed-sequence testing from several starts (the same paper, algorithm 1). All that is
certified then holds at once at the declared level, so the widest of it may be picked by looking. The
price is rows: the scores compete only where a fixed share of the rows leaves room for an error at
the divided level, which no label decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from evaluators.intervals import binomial_p_value, hoeffding_bentkus_p_value
from evaluators.replay import Outcome
from infra.prompting.confidence import MEAN, SCORES, answers_drawn

# The strictest rank tested, as a share of the rows: higher leaves room for an error among the most
# confident, lower certifies models that are sure of few. Fixed here, so that no label chooses it.
START_SHARE = 0.4
# Of graded scores, whose bound needs more rows for the same.
GRADED_START_SHARE = 0.6
# Scores compete where so many of the rows leave room for an error at the divided level.
COMPETING_SHARE = 0.6
MAX_ERRORS_LISTED = 200


@dataclass(frozen=True)
class Threshold:
    """The least confidence to show, or nothing to show at all."""

    value: float | None
    """Show an answer whose confidence is at least this; None: none certifies, show nothing."""
    risk: float
    level: float
    rows: int
    """Rows looked at, with those whose answer may never be shown."""
    eligible: int
    """Rows whose answer passed its checks and has a confidence."""
    shown: int
    """Rows at or above ``value``."""
    errors: float
    """Sum of 1 - correct over the shown rows."""
    coverage: float
    """shown / rows."""
    p_value: float
    needed: int
    """Fewest shown rows that could certify, with no error at all."""
    reason: str
    score: str = MEAN
    """Which confidence it is a threshold of."""
    compared: Mapping[str, float] = field(default_factory=dict)
    """Certified coverage of each score that competed; empty when none did."""

    @property
    def certified(self) -> bool:
        return self.value is not None

    def accepts(self, confidence: float | None) -> bool:
        """Whether an answer that passed its checks may be shown."""
        return self.value is not None and confidence is not None and confidence >= self.value

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(
    confidences: Sequence[float | None], correct: Sequence[float], risk: float, level: float
) -> Threshold:
    """The lowest threshold whose error among the shown answers is certified to be at most ``risk``.

    Args:
        confidences: one per validation row, higher is surer; None (or -inf, nan) for an answer that
            may not be shown whatever its confidence, because a check failed or there was none.
        correct: 0 to 1 per row.
        risk: tolerated share of errors among shown answers.
        level: tolerated chance that the certificate is wrong.

    Raises:
        ValueError: lengths differ, correctness outside [0, 1], risk or level outside (0, 1).
    """
    _check(confidences, correct, risk, level)
    ranked = sorted(
        (
            (confidence, 1.0 - score)
            for confidence, score in zip(confidences, correct, strict=True)
            if confidence is not None and math.isfinite(confidence)
        ),
        key=lambda row: -row[0],
    )
    n, needed = len(ranked), rows_needed(0, risk, level)
    best: tuple[int, float, float] | None = None
    tested = 1.0
    exact = all(loss in (0.0, 1.0) for _, loss in ranked)
    total = 0.0
    start = _start_rank(n, risk, level, START_SHARE if exact else GRADED_START_SHARE)
    for rank, (confidence, loss) in enumerate(ranked, 1):
        total += loss
        # Rows of equal confidence are shown together or not at all.
        if rank < start or (rank < n and ranked[rank][0] == confidence):
            continue
        tested = (
            binomial_p_value(round(total), rank, risk)
            if exact
            else hoeffding_bentkus_p_value(total / rank, rank, risk)
        )
        if tested > level:
            break
        best = (rank, total, tested)
    rows = len(correct)
    if best is None:
        why = (
            f"{n} of {rows} answers pass their checks; certifying a risk of {risk:.0%} takes at least "
            f"{needed}, without one error"
            if n < needed
            else f"too many errors among the {start} most confident of {n} answers"
        )
        return Threshold(None, risk, level, rows, n, 0, 0.0, 0.0, tested, needed, why)
    shown, errors, p_value = best
    value = ranked[shown - 1][0]
    why = f"{errors:.3g} errors among the {shown} most confident of {rows} answers"
    return Threshold(value, risk, level, rows, n, shown, errors, shown / rows, p_value, needed, why)


def calibrate_best(
    confidences: Mapping[str, Sequence[float | None]],
    correct: Sequence[float],
    risk: float,
    level: float,
) -> Threshold:
    """The threshold, of the score under which most answers are certified.

    Args:
        confidences: per score one per row, as for ``calibrate``. The first score stands alone where
            the rows are too few to compare; of equals the first is taken.
    """
    first = next(iter(confidences))
    eligible = sum(value is not None and math.isfinite(value) for value in confidences[first])
    share = level / len(confidences)
    if len(confidences) < 2 or rows_needed(1, risk, share) > COMPETING_SHARE * eligible:
        return replace(calibrate(confidences[first], correct, risk, level), score=first)
    found = {
        name: replace(calibrate(values, correct, risk, share), score=name, level=level)
        for name, values in confidences.items()
    }
    best = max(found.values(), key=lambda threshold: threshold.shown)
    return replace(best, compared={name: each.coverage for name, each in found.items()})


def calibrate_outcomes(outcomes: Iterable[Outcome], risk: float, level: float) -> Threshold:
    """``calibrate_best`` on replayed validation rows; answers that may never be shown count as
    uncovered. Rows that were asked for one confidence alone know no other."""
    rows = list(outcomes)
    # What takes more answers comes last: of equals the cheaper is taken.
    drawn = {name for row in rows for name in row.confidences if answers_drawn(name)}
    names = [
        name
        for name in (*SCORES, *sorted(drawn))
        if rows and all(name in row.confidences for row in rows if row.showable)
    ]
    correct = [row.score.correct for row in rows]
    if not names:
        return calibrate(
            [row.confidence if row.showable else None for row in rows], correct, risk, level
        )
    confidences: dict[str, Sequence[float | None]] = {
        name: [row.confidences[name] if row.showable else None for row in rows] for name in names
    }
    return calibrate_best(confidences, correct, risk, level)


def rows_needed(errors: int, risk: float, level: float) -> int:
    """Fewest shown rows that certify ``risk`` at ``level`` when ``errors`` of them are wrong."""
    low, high = errors, errors + 1
    while binomial_p_value(errors, high, risk) > level:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_p_value(errors, middle, risk) > level:
            low = middle
        else:
            high = middle
    return high


def _start_rank(n: int, risk: float, level: float, share: float) -> int:
    """Largest rank that allows one more error than the last and is within the share."""
    start = rows_needed(0, risk, level)
    for errors in range(1, MAX_ERRORS_LISTED):
        following = rows_needed(errors, risk, level)
        if following > share * n:
            break
        start = following
    return start


def _check(
    confidences: Sequence[float | None], correct: Sequence[float], risk: float, level: float
) -> None:
    if len(confidences) != len(correct):
        raise ValueError(f"{len(confidences)} confidences but {len(correct)} scores")
    if not (0 < risk < 1 and 0 < level < 1):
        raise ValueError(f"risk and level lie between 0 and 1, got {risk} and {level}")
    if any(not 0 <= score <= 1 for score in correct):
        raise ValueError("correctness lies in [0, 1]")
