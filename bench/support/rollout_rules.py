"""How other tools decide a canary, written from their documentation, on counts of labels as they arrive.

Their rules see what their users' metrics show: how many labels of each arm arrived by each look, and
how many were right. One look falls every ``LOOK`` canary sessions; the tools that work in intervals
take ``INTERVAL`` looks as one. A rule says at which look it rolls back and at which it promotes.

All of them get the same margin and, where they have one, the same level as the product.

* ``argo``: Argo Rollouts, AnalysisTemplate: per interval "canary >= stable - margin", failureLimit 2,
  then promoted after ``COUNT`` measurements.
* ``flagger``: Flagger: per interval the canary against a fixed range, the champion's known rate less
  the margin; no values is a failed check; threshold 5 failed checks, ``COUNT`` iterations.
* ``kayenta``: Kayenta, Netflix judge: Mann-Whitney on one value per interval, confidence 0.98,
  tolerance 0.25 of the Hodges-Lehmann estimate; one metric, so its score is 100 or 0; judged after
  every interval from the fifth.
* ``growthbook``: GrowthBook safe rollout: one-sided asymptotic confidence sequence (N* 5000) on the
  difference, threshold 0; what is not rolled back by the end is shipped.
* ``tensorzero``: TensorZero track-and-stop: the leader wins when its generalized likelihood ratio
  exceeds ln((1 + ln n) / delta), at least 10 labels an arm. It balances its arms itself, so on an
  uneven split this is a transplant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Looks = NDArray[np.int64]

LOOK = 5
INTERVAL = 5
COUNT = 10
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Seen:
    """Labels that arrived by each look, cumulative: (runs, looks)."""

    canaries: Numbers
    canaries_right: Numbers
    champions: Numbers
    champions_right: Numbers


@dataclass(frozen=True)
class Setting:
    margin: float
    alpha: float
    base_rate: float
    """The champion's rate as its users know it before the rollout."""


Rule = Callable[[Seen, Setting], tuple[Looks, Looks]]


def argo(seen: Seen, setting: Setting) -> tuple[Looks, Looks]:
    canary, champion = _rates(seen)
    failed = canary < champion - setting.margin  # a comparison with no value is no failure
    return _counted(failed, allowed=2)


def flagger(seen: Seen, setting: Setting) -> tuple[Looks, Looks]:
    canary, _ = _rates(seen)
    failed = ~(canary >= setting.base_rate - setting.margin)
    return _counted(failed, allowed=4)


def kayenta(seen: Seen, setting: Setting) -> tuple[Looks, Looks]:
    canary, champion = _rates(seen)
    intervals = canary.shape[1]
    bad = np.zeros(canary.shape, dtype=bool)
    for place in range(4, intervals):
        bad[:, place] = _low(canary[:, : place + 1], champion[:, : place + 1])
    first = _first(bad)
    last = intervals - 1
    return _looks(first), _looks(np.where(first == NEVER, last, NEVER))


def growthbook(seen: Seen, setting: Setting) -> tuple[Looks, Looks]:
    tuning, alpha = 5000, setting.alpha
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / tuning
    gap, variance, enough = _difference(seen, 2)
    n = seen.canaries + seen.champions
    scaled = n * rho2
    # One-sided: the two-sided bound at twice the level.
    half = np.sqrt(
        variance * n * 2 * (scaled + 1) * np.log(np.sqrt(scaled + 1) / (2 * alpha)) / (n * scaled)
    )
    bad = _first(enough & (gap + half < 0))
    last = gap.shape[1] - 1
    return bad, np.where(bad == NEVER, last, NEVER)


def tensorzero(seen: Seen, setting: Setting) -> tuple[Looks, Looks]:
    gap, variance, enough = _difference(seen, 10)
    n = np.maximum(seen.canaries + seen.champions, 1)
    ratio = gap**2 / (2 * np.maximum(variance, 1e-12))
    stop = enough & (ratio > np.log((1 + np.log(n)) / setting.alpha))
    return _first(stop & (gap < 0)), _first(stop & (gap > 0))


RULES: dict[str, Rule] = {
    "argo": argo,
    "flagger": flagger,
    "kayenta": kayenta,
    "growthbook": growthbook,
    "tensorzero": tensorzero,
}


def _rates(seen: Seen) -> tuple[Numbers, Numbers]:
    """Share of right labels among those that came in each interval; nan without any."""

    def rate(right: Numbers, labels: Numbers) -> Numbers:
        ends = slice(INTERVAL - 1, None, INTERVAL)
        rights, counts = (
            np.diff(values[:, ends], axis=1, prepend=0.0) for values in (right, labels)
        )
        return np.where(counts > 0, rights / np.maximum(counts, 1), np.nan)

    return (
        rate(seen.canaries_right, seen.canaries),
        rate(seen.champions_right, seen.champions),
    )


def _counted(failed: NDArray[np.bool_], allowed: int) -> tuple[Looks, Looks]:
    """Bad at one failed interval more than ``allowed``; good after ``COUNT`` intervals without."""
    failed = failed[:, :COUNT]
    bad = _first(failed.cumsum(axis=1) > allowed)
    good = np.where(bad == NEVER, failed.shape[1] - 1, NEVER)
    return _looks(bad), _looks(good)


def _low(canary: Numbers, champion: Numbers) -> NDArray[np.bool_]:
    """Whether the Mann-Whitney interval of canary - champion lies below the tolerated band."""
    n = canary.shape[1]
    with np.errstate(invalid="ignore"):
        shifts = np.sort(
            (canary[:, :, None] - champion[:, None, :]).reshape(len(canary), -1), axis=1
        )
    z = 2.3263  # two-sided 0.98
    rank = int(np.floor(n * n / 2 - z * np.sqrt(n * n * (2 * n + 1) / 12)))
    upper = shifts[:, n * n - 1 - max(rank, 0)]
    estimate = np.median(shifts, axis=1)
    return upper < -0.25 * np.abs(estimate)


def _difference(seen: Seen, least: int) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Canary less champion, the variance of that, and whether both have ``least`` labels."""
    first, second = np.maximum(seen.canaries, 1), np.maximum(seen.champions, 1)
    one, two = seen.canaries_right / first, seen.champions_right / second
    variance = one * (1 - one) / first + two * (1 - two) / second
    return one - two, variance, (seen.canaries >= least) & (seen.champions >= least)


def _first(over: NDArray[np.bool_]) -> Looks:
    return np.where(over.any(axis=1), over.argmax(axis=1), NEVER)


def _looks(intervals: Looks) -> Looks:
    """The look at which an interval ends."""
    return np.where(intervals == NEVER, NEVER, intervals * INTERVAL + INTERVAL - 1)
