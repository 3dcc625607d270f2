"""Are the arms as large as they were meant to be? A sequential test of sample-ratio mismatch.

A gateway with an old route, lost records or a broken hash show as arms of the wrong size, and then no
comparison of the arms means anything. Per epoch of unchanged weight w the number of canary sessions
among n is binomial under the hypothesis of a sound split. The e-value is the ratio of the likelihood
under a Beta(k w, k (1 - w)) mixture of other shares to that at w:

    B(k w + canaries, k (1 - w) + champions) / B(k w, k (1 - w)) / (w^canaries (1 - w)^champions)

It depends on the counts alone, and e-values of successive epochs multiply. Source: Lindon & Malek,
"Anytime-valid inference for multinomial count data", NeurIPS 2022 (arXiv 2011.03567).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

CONCENTRATION = 100.0
"""k: how near to the intended share a wrong one is looked for; as in the source's examples."""
ALPHA = 0.001
"""Chance of ever raising a false alarm in a rollout."""


@dataclass(frozen=True)
class Split:
    """Sessions first exposed while the canary's share was ``share``, in (0, 1]."""

    canaries: int
    champions: int
    share: float


@dataclass(frozen=True)
class RatioTest:
    e_value: float
    mismatch: bool
    reason: str


def sample_ratio(splits: Iterable[Split], alpha: float = ALPHA) -> RatioTest:
    """Verdict on all epochs so far; raises ValueError for a negative count or an impossible share.

    A mismatch is latched by the caller: the e-value may fall again.
    """
    splits = tuple(splits)
    log_e = sum(log_mismatch(split) for split in splits)
    e_value = math.inf if log_e > 700 else math.exp(log_e)
    found = e_value >= 1 / alpha
    reason = ""
    if found:
        got = ", ".join(
            f"{split.canaries} of {split.canaries + split.champions} at {split.share:.0%}"
            for split in splits
        )
        reason = (
            f"the canary arm is not as large as it was meant to be ({got}): look for gateways with "
            "an old route and for lost records before trusting any comparison"
        )
    return RatioTest(e_value, found, reason)


def log_mismatch(split: Split, concentration: float = CONCENTRATION) -> float:
    """Log e-value of one epoch."""
    canaries, champions, share = split.canaries, split.champions, split.share
    if canaries < 0 or champions < 0 or not 0 < share <= 1:
        raise ValueError(f"counts are not negative and a share lies in (0, 1], got {split}")
    if share == 1:
        return math.inf if champions else 0.0
    a, b = concentration * share, concentration * (1 - share)
    return (
        _log_beta(a + canaries, b + champions)
        - _log_beta(a, b)
        - canaries * math.log(share)
        - champions * math.log1p(-share)
    )


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
