"""E-processes for "the canary is worse than the champion by more than a margin", and its opposite.

Pure numpy on arrays of any leading shape, so that one rollout and ten thousand simulated ones run
through the same code. A *block* holds the sums of the scores, in [0, 1], of some canary and some
concurrent champion sessions. Its factor, for a centre b0, c0 = b0 - margin, a stake s >= 0 and the
canary's share l of the block's sessions, is the product over its sessions of

    canary    1 - s / l * (score - c0)          champion    1 + s / (1 - l) * (score - b0)

(``worse``; ``as_good`` has s <= 0). Validity, for any centre and stake chosen before the block's
outcomes and small enough that no term is negative: given the past and who is in the block, outcomes
are independent, so the expected product is the product of the expected terms. By the inequality of
the arithmetic and the geometric mean that is at most their mean to the power n, and the mean is
1 - s (m_canary - m_champion + margin), with the *average* means of the block's two sides. Where the
canary is at most ``margin`` worse this is at most 1. So the running product, and any fixed mixture of
such products, is a non-negative supermartingale from 1: by Ville's inequality it ever reaches
1 / alpha with chance at most alpha, however often it is looked at. Only the average over a block has
to obey the doubted hypothesis, so drift that both arms share does not matter.

Power: centre and stake are those of the likelihood ratio of (b1 - harm, b1) against its projection on
the line canary = champion - margin, which is the growth-rate optimal e-variable there; b1 is a
running mean of the champion's past (predictable plug-in), and the harms are mixed over.

A score between 0 and 1 enters as that share of a right answer and the rest of a wrong one,
geometrically. A logarithm is concave, so this is at most the term above: still valid, a little weaker.

Sources: Turner, Ly & Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for
optional stopping", arXiv 2106.02693 (blocks, arithmetic-geometric step, projection); Turner &
Grünwald, "Exact anytime-valid confidence intervals for contingency tables and beyond", Stat. Probab.
Lett. 198 (2023) 109835 (margins); Waudby-Smith & Ramdas, "Estimating means of bounded random variables
by betting", J. R. Stat. Soc. B 86 (2024) 1 (paired differences, predictable plug-in); Robbins, Ann.
Math. Stat. 41 (1970) 1397 (mixture); Ville, "Étude critique de la notion de collectif" (1939).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# Harms that a bad canary is expected to do, in points beyond the margin, and the capital on each:
# chosen by the search of infra/decisions/0014-the-canary-test.md. Others are found too, a little later.
HARMS = ((0.07, 0.5), (0.15, 0.5))
# How much of the margin a good canary is expected to use up.
USED_UP = ((0.0, 0.4), (0.25, 0.3), (0.5, 0.3))
# Paired answers to one prompt: harms beyond the margin.
PAIRED_HARMS = ((0.07, 0.4), (0.11, 0.4), (0.3, 0.2))

LARGEST_MARGIN = 0.99
"""A margin near 1 leaves no room for a canary that is worse by more."""

# What is believed of the champion before any outcome, and the sessions that this belief is worth.
PRIOR_MEAN, PRIOR_SESSIONS = 0.9, 4.0
PRIOR_DISCORDANCE, PRIOR_PAIRS = 0.14, 10.0
_EDGE = 1e-3  # beliefs stay this far from 0 and 1, so that no surprise is worth everything
_NEWTON_STEPS = 3
_LARGEST_STAKE = 0.999


@dataclass(frozen=True)
class Counts:
    """Blocks along the last axis: sessions of each side and the sums of their scores.

    ``champions`` 0 means that the champion's mean is not observed in this block but known.
    """

    canaries: Numbers
    canary_sum: Numbers
    champions: Numbers
    champion_sum: Numbers

    @classmethod
    def of(cls, rows: Iterable[tuple[float, float, float, float]]) -> Counts:
        """From one row (canaries, their sum, champions, their sum) per block."""
        table = np.array(list(rows), dtype=float).reshape(-1, 4)
        return cls(*table.T)


def worse(counts: Counts, margin: float, known: float = 1.0) -> Numbers:
    """Running log e-values against "the canary is at most ``margin`` worse".

    Args:
        counts: canary scores at their best, champion scores at their worst.
        margin: tolerated difference, from 0 to ``LARGEST_MARGIN``.
        known: the champion's mean where no champion session stands in the block.

    Raises ValueError for another margin.
    """
    check_margin(margin)
    champion = _believed_champion(counts, known)
    return _mixture(
        (_factors(counts, margin, champion, champion - margin - harm, known, +1), weight)
        for harm, weight in HARMS
    )


def as_good(counts: Counts, margin: float, known: float = 1.0) -> Numbers:
    """Running log e-values against "the canary is at least ``margin`` worse".

    Args:
        counts: canary scores at their worst, champion scores at their best.
        margin: as for ``worse``; at 0 only a better canary is ever shown as good.
        known: as for ``worse``.
    """
    check_margin(margin)
    champion = _believed_champion(counts, known)
    return _mixture(
        (_factors(counts, margin, champion, champion - used * margin, known, -1), weight)
        for used, weight in USED_UP
    )


def paired_worse(differences: Numbers, margin: float) -> Numbers:
    """Running log e-values from differences in [-1, 1] of two answers to the same prompt.

    Each pair multiplies the stake by 1 - b (difference + margin): for a bound on a mean this linear
    bet is the growth-rate optimal e-variable. b is (harm) / (mean square), the optimum to second
    order, from a running mean of the share of pairs that differ. Raises ValueError as ``worse`` does.
    """
    check_margin(margin)
    n = np.arange(differences.shape[-1])
    squares = np.cumsum(differences**2, axis=-1) - differences**2
    spread = (PRIOR_DISCORDANCE * PRIOR_PAIRS + squares) / (PRIOR_PAIRS + n)
    parts = []
    for harm, weight in PAIRED_HARMS:
        mean_square = np.maximum(spread, margin + harm) - 2 * margin * (margin + harm) + margin**2
        bet = np.clip(harm / np.maximum(mean_square, _EDGE), 0.0, 0.9 / (1 + margin))
        parts.append((np.log1p(-bet * (differences + margin)), weight))
    return _mixture(parts)


def check_margin(margin: float) -> None:
    if not 0 <= margin <= LARGEST_MARGIN:
        raise ValueError(f"a margin lies between 0 and {LARGEST_MARGIN}, got {margin:g}")


def _mixture(parts: Iterable[tuple[Numbers, float]]) -> Numbers:
    running = [np.cumsum(factors, axis=-1) + np.log(weight) for factors, weight in parts]
    return np.asarray(np.logaddexp.reduce(running, axis=0))


def _believed_champion(counts: Counts, known: float) -> Numbers:
    """Running mean of the champion's scores before each block."""
    sums = np.cumsum(counts.champion_sum, axis=-1) - counts.champion_sum
    sessions = np.cumsum(counts.champions, axis=-1) - counts.champions
    believed = (PRIOR_MEAN * PRIOR_SESSIONS + sums) / (PRIOR_SESSIONS + sessions)
    believed = np.where(counts.champions > 0, believed, known)
    return np.asarray(np.clip(believed, _EDGE, 1 - _EDGE))


def _factors(
    counts: Counts, margin: float, champion: Numbers, canary: Numbers, known: float, sign: int
) -> Numbers:
    """Log factor of each block for the bet that the two means are ``canary`` and ``champion``.

    ``sign`` is that of the stake: +1 doubts that the canary is good enough, -1 that it is too bad.
    """
    canary = np.clip(canary, _EDGE, 1 - _EDGE)
    sessions = np.maximum(counts.canaries + counts.champions, 1.0)
    share = counts.canaries / sessions
    beside = counts.champions > 0
    # Blocks that hold one side only have a factor of their own; here they must merely not divide by 0.
    share = np.where(beside & (counts.canaries > 0), share, 0.5)
    centre = _projection(share, canary, champion, margin)
    below = centre - margin
    # The stake that the likelihood ratio of either side asks for; they agree at the projection.
    by_canary = share * (below - canary) / (below * (1 - below))
    by_champion = (1 - share) * (champion - centre) / (centre * (1 - centre))
    stake = (1 - share) * by_canary + share * by_champion
    if sign > 0:
        most = np.minimum(share / (1 - below), (1 - share) / centre)
        stake = np.clip(stake, 0.0, _LARGEST_STAKE * most)
    else:
        most = np.minimum(share / below, (1 - share) / (1 - centre))
        stake = np.clip(stake, -_LARGEST_STAKE * most, 0.0)
    two_sided = _log_terms(counts.canaries, counts.canary_sum, below, stake / share)
    two_sided += _log_terms(counts.champions, counts.champion_sum, centre, -stake / (1 - share))
    alone = _alone(counts, known - margin, canary, sign)
    return np.asarray(np.where(counts.canaries > 0, np.where(beside, two_sided, alone), 0.0))


def _alone(counts: Counts, below: float, canary: Numbers, sign: int) -> Numbers:
    """Log factor against a known bound: the likelihood ratio of ``canary`` against ``below``."""
    if not _EDGE / 2 <= below <= 1 - _EDGE / 2:
        return np.zeros_like(counts.canaries)  # nothing, or everything, is below the bound
    stake = (below - canary) / (below * (1 - below))
    if sign > 0:
        stake = np.clip(stake, 0.0, _LARGEST_STAKE / (1 - below))
    else:
        stake = np.clip(stake, -_LARGEST_STAKE / below, 0.0)
    return _log_terms(counts.canaries, counts.canary_sum, below, stake)


def _log_terms(sessions: Numbers, total: Numbers, centre: Numbers | float, bet: Numbers) -> Numbers:
    """Sum over the sessions of log(1 - bet * (score - centre)), from the sum of their scores."""
    right, wrong = np.log1p(-bet * (1 - centre)), np.log1p(bet * centre)
    return np.asarray(total * right + (sessions - total) * wrong)


def _projection(share: Numbers, canary: Numbers, champion: Numbers, margin: float) -> Numbers:
    """The champion's mean at the point of canary = champion - margin nearest in relative entropy.

    Newton's method from the mean of both, weighted by their precision. It need not be
    exact: every centre is valid, the exact one merely grows fastest.
    """
    low, high = margin + _EDGE / 2, 1 - _EDGE / 2
    first = share / (canary * (1 - canary))
    second = (1 - share) / (champion * (1 - champion))
    centre = (first * (canary + margin) + second * champion) / (first + second)
    centre = np.clip(centre, low, high)
    for _ in range(_NEWTON_STEPS):
        below = centre - margin
        first, second = below * (1 - below), centre * (1 - centre)
        slope = share * (below - canary) / first + (1 - share) * (centre - champion) / second
        curve = share * (1 / first - (below - canary) * (1 - 2 * below) / first**2)
        curve += (1 - share) * (1 / second - (centre - champion) * (1 - 2 * centre) / second**2)
        floor = 0.3 * (share / first + (1 - share) / second)
        centre = np.clip(centre - slope / np.maximum(curve, floor), low, high)
    return np.asarray(centre)
