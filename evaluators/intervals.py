"""Intervals and p-values that are valid at small sample sizes.

Means of values in [0, 1] and of paired differences in [-1, 1]. Nothing asymptotic: a new adapter is
judged on tens of rows, nearly all of them right, which is where normal approximations fail.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
# Shares of the largest allowed bet. Large bets win when losses are rare, small ones when they are not.
_BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 1.0])
_BET_WEIGHTS = np.array([0.05, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.25])


def clopper_pearson(successes: int, n: int, level: float) -> tuple[float, float]:
    """Two-sided exact interval of a proportion at confidence 1 - level; (0, 1) when n is 0.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404.
    """
    return proportion_lower(successes, n, level / 2), proportion_upper(successes, n, level / 2)


def proportion_upper(successes: int, n: int, level: float) -> float:
    """One-sided exact upper bound of a proportion: the true one lies above with chance <= level."""
    from scipy.stats import beta

    _check_counts(successes, n)
    return 1.0 if successes == n else float(beta.ppf(1 - level, successes + 1, n - successes))


def proportion_lower(successes: int, n: int, level: float) -> float:
    """One-sided exact lower bound of a proportion: the true one lies below with chance <= level."""
    from scipy.stats import beta

    _check_counts(successes, n)
    return 0.0 if successes == 0 else float(beta.ppf(level, successes, n - successes + 1))


@lru_cache(maxsize=1 << 16)
def binomial_p_value(errors: int, n: int, risk: float) -> float:
    """P(Binomial(n, risk) <= errors): p-value of "the error rate is above ``risk``"; 1 when n is 0."""
    from scipy.stats import binom

    _check_counts(errors, n)
    return 1.0 if n == 0 else float(binom.cdf(errors, n, risk))


def hoeffding_bentkus_p_value(mean_loss: float, n: int, risk: float) -> float:
    """p-value of "the mean loss is above ``risk``" for independent losses in [0, 1].

    Source: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then Test" (2021), proposition 4: the
    smaller of Hoeffding's bound in its relative-entropy form and Bentkus' binomial bound.
    """
    from scipy.stats import binom

    if n == 0:
        return 1.0
    loss = min(mean_loss, risk)
    hoeffding = math.exp(-n * _relative_entropy(loss, risk))
    # A mean such as 2.0000000001 / n comes from rounding, not from a third error.
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean_loss - 1e-9), n, risk))
    return min(1.0, hoeffding, bentkus)


def mean_lower_bound(values: ArrayLike, level: float) -> float:
    """One-sided lower bound of the mean of independent values in [0, 1], valid at any n.

    A mean m is excluded when betting against it multiplies the stake by 1 / level: the stake is the
    mixture over f of prod(1 + f (x - m) / m), whose expectation is at most 1 when the mean is at
    most m, so by Markov's inequality it reaches 1 / level with chance at most level.

    Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting",
    J. R. Stat. Soc. B 86 (2024) 1, with constant bets.

    Raises ValueError for values outside [0, 1].
    """
    x = np.asarray(values, dtype=float)
    if x.size and (x.min() < -1e-12 or x.max() > 1 + 1e-12 or np.isnan(x).any()):
        raise ValueError("values of a bounded mean lie in [0, 1]")
    goal = math.log(1 / level)
    low, high = 0.0, float(x.mean()) if x.size else 0.0
    # The stake falls as m rises, so bisection finds where it passes the goal.
    for _ in range(50):
        middle = (low + high) / 2
        if middle <= 0.0:
            break
        low, high = (middle, high) if _log_stake(x, middle) >= goal else (low, middle)
    return low


def difference_bounds(differences: ArrayLike, level: float) -> tuple[float, float]:
    """Lower and upper one-sided betting bounds, each at ``level``, of a mean difference in [-1, 1]."""
    x = (np.asarray(differences, dtype=float) + 1) / 2
    return 2 * mean_lower_bound(x, level) - 1, 1 - 2 * mean_lower_bound(1 - x, level)


def session_bootstrap(
    values: ArrayLike,
    sessions: Sequence[Hashable],
    level: float,
    *,
    seed: int = 7,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile interval of the mean at confidence 1 - level, resampling whole sessions.

    Rows of one session are not independent; sessions are. Not valid at tiny n (with no error seen
    its width is zero), so it stands beside an exact bound, never alone.

    Source: Davison & Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    x = np.asarray(values, dtype=float)
    if x.size != len(sessions):
        raise ValueError(f"{x.size} values but {len(sessions)} sessions")
    if not x.size:
        return 0.0, 1.0
    index = _session_index(sessions)
    totals = np.bincount(index, weights=x)
    counts = np.bincount(index).astype(float)
    random = np.random.default_rng(seed)
    picked = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    means = (picked @ totals) / (picked @ counts)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(high)


def _log_stake(x: NDArray[np.float64], mean: float) -> float:
    with np.errstate(divide="ignore"):
        growth = np.log1p(_BETS[:, None] * (x[None, :] - mean) / mean).sum(axis=1)
    return float(np.logaddexp.reduce(growth + np.log(_BET_WEIGHTS)))


def _relative_entropy(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def _session_index(sessions: Sequence[Hashable]) -> NDArray[np.int64]:
    places: dict[Hashable, int] = {}
    return np.array([places.setdefault(session, len(places)) for session in sessions])


def _check_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion")
