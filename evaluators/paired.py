"""An exact test of "worse by the margin or more" from rows lost and won against an incumbent.

Two answerers are asked the same n rows; x of them only the incumbent gets right (lost), y only the
candidate (won). Under the hypothesis the chances of the two differ by the margin, and how often the
two answer differently at all is unknown. Tables are ranked by the score statistic, whose variance is
estimated under the hypothesis (Tango, "Equivalence test and confidence interval for the difference in
proportions for the paired-sample design", Statistics in Medicine 17 (1998) 891), and the p-value is
the largest chance of a table ranked as high as the one seen, over every value of what is unknown
(Hsueh, Liu & Chen, "Unconditional exact tests for equivalence or noninferiority for paired binary
endpoints", Biometrics 57 (2001) 478). So it holds at any n and any share of differing answers, and
gives away only what the table's coarseness costs. A loss beyond the margin is covered too: the set of
tables ranked higher is closed under losing fewer rows and under winning more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 5000
"""Beyond, other bounds are as good. With so many rows a bound takes about a second of a processor."""
_GRID = 161
_SLACK = 1.0005
"""The largest chance is looked for on a grid, finer around its peaks; between the points it is larger
by less than this."""

_NOTHING = 1e-18
"""A chance that is left out: of a few hundred columns."""

Floats = NDArray[np.float64]


def loss_p_value(lost: int, won: int, rows: int, margin: float) -> float:
    """p-value of "the candidate's chance of being right is at least ``margin`` below the incumbent's".

    Raises ValueError for counts that are none, or a margin outside (0, 1).
    """
    if not (lost >= 0 and won >= 0 and lost + won <= rows):
        raise ValueError(f"{lost} lost and {won} won of {rows} rows is no table")
    if not 0 < margin < 1:
        raise ValueError(f"a margin lies between 0 and 1, got {margin:g}")
    if not rows:
        return 1.0
    return min(1.0, max(_chance_maxima(lost, won, rows, margin)))


def _chance_maxima(lost: int, won: int, rows: int, margin: float) -> Iterator[float]:
    """The largest chance of a table ranked as high as this one: on the grid, then finer around its
    peaks. Slack included; the second takes longer, and whom the first tells enough need not ask."""
    least = _least_won(lost, won, rows, margin)
    top = (1 - margin) / 2
    # Even steps of the arc sine of the root: there a binomial spreads as wide everywhere.
    steps = np.linspace(0.0, 1.0, _GRID)
    chances = _chances(least, rows, margin, top * np.sin(np.pi / 2 * steps) ** 2)
    yield float(_SLACK * chances.max())
    padded = np.concatenate([[-1.0], chances, [-1.0]])
    peak = (padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:])
    peaks = np.flatnonzero(peak & (chances >= 0.5 * chances.max()))
    around = steps[peaks][:, None] + np.linspace(-1, 1, 21)[None, :] / (_GRID - 1)
    finer = np.unique(np.clip(around.ravel(), 0.0, 1.0))
    yield float(_SLACK * _chances(least, rows, margin, top * np.sin(np.pi / 2 * finer) ** 2).max())


def loss_upper(lost: int, won: int, rows: int, level: float, margin: float) -> float:
    """Upper bound of the loss at confidence 1 - level: beyond it every loss is rejected.

    Below ``margin`` exactly when a loss of ``margin`` is rejected.
    """

    def possible(loss: float) -> bool:
        """Whether a loss of so much is not rejected; asked of the grid first, which mostly tells."""
        return any(chance > level for chance in _chance_maxima(lost, won, rows, loss))

    rejected = loss_p_value(lost, won, rows, margin) <= level
    low = max((lost - won) / rows, 0.0) if rejected else margin
    high = margin if rejected else 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if middle <= 0 or possible(min(middle, 1 - 1e-9)):
            low = middle
        else:
            high = middle
    return high


def _least_won(lost: int, won: int, rows: int, margin: float) -> NDArray[np.int64]:
    """Per count of lost rows, the fewest won ones that rank as high as the table seen; rows + 1: none."""
    seen = float(_score(np.array([lost]), np.array([won]), rows, margin)[0]) - 1e-9
    x = np.arange(rows + 1)
    low, high = np.zeros_like(x), rows - x + 1
    while np.any(low < high):
        middle = (low + high) // 2
        enough = (middle <= rows - x) & (_score(x, middle, rows, margin) >= seen)
        open_ = low < high
        high = np.where(open_ & (enough | (middle > rows - x)), middle, high)
        low = np.where(open_ & ~enough & (middle <= rows - x), middle + 1, low)
    least = np.where(low > rows - x, rows + 1, low)
    # Closed under losing fewer: a table that ranks high makes those with fewer lost rows rank high.
    return np.minimum.accumulate(least[::-1])[::-1]


def _score(x: NDArray[np.int64], y: NDArray[np.int64], rows: int, margin: float) -> Floats:
    """Tango's statistic, higher for less of a loss; x rows are lost, y won."""
    slope = x + y - margin * (2 * rows - x + y)
    root = np.sqrt(slope**2 + 8 * rows * y * margin * (1 - margin))
    won = np.clip((slope + root) / (4 * rows), 0.0, (1 - margin) / 2)
    spread = rows * (2 * won + margin - margin**2)
    return np.asarray((rows * margin - (x - y)) / np.sqrt(spread))


def _chances(least: NDArray[np.int64], rows: int, margin: float, won: Floats) -> Floats:
    """Chance of a table in the set, per chance of winning a row."""
    from scipy.special import betainc, gammaln

    losing = (won + margin)[:, None]
    given = np.clip(won[:, None] / np.maximum(1 - losing, 1e-300), 0.0, 1.0)
    # Counts of lost rows that occur at all: further off than this their chances add up to nothing.
    reach = int(9 * math.sqrt(rows) / 2) + 20
    first = np.clip((rows * losing).astype(int) - reach, 0, max(0, rows - 2 * reach))
    x = first + np.arange(min(2 * reach, rows) + 1)[None, :]
    factorials = gammaln(np.arange(rows + 1) + 1.0)
    ways = factorials[rows] - factorials - factorials[::-1]
    here = np.exp(ways[x] + x * np.log(losing) + (rows - x) * np.log1p(-losing))
    told = (least[x] <= rows) & (here > _NOTHING)
    wanted, left = least[x][told], (rows - x)[told]
    # At least ``wanted`` of ``left`` rows won, as an incomplete beta integral; of none wanted always.
    enough = betainc(
        np.maximum(wanted, 1), left - wanted + 1, np.broadcast_to(given, x.shape)[told]
    )
    found = np.zeros(x.shape)
    found[told] = here[told] * np.where(wanted == 0, 1.0, enough)
    return np.asarray(found.sum(axis=1))
