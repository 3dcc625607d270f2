"""Sequential test of a canary against its concurrent champion, valid at every look.

Two one-sided tests by betting. With d = canary - champion in one block, in [-1, 1], and a margin:

* ``bad`` doubts "the canary is at most ``margin`` worse" by the stake prod(1 - b (d + margin)),
  0 <= b <= 1 / (1 + margin);
* ``good`` doubts "the canary is at least ``margin`` worse" by prod(1 + b (d + margin)),
  0 <= b <= 1 / (1 - margin).

Under the doubted hypothesis each factor is non-negative with a conditional mean of at most 1, so the
stake, and any mixture over bets fixed beforehand, is a non-negative supermartingale from 1: an
e-process. By Ville's inequality it ever reaches 1 / alpha with chance at most alpha, so looking after
every session costs nothing.

Sources: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", J. R.
Stat. Soc. B 86 (2024) 1, section 4; Ville, "Étude critique de la notion de collectif" (1939); mixture
as in Robbins, Ann. Math. Stat. 41 (1970) 1397. It needs randomized arms and no drift inside a block.

How long it takes (alpha 0.05, margin 0.1, champion always right): a canary without an error is good
after 34 sessions, one that is always wrong is bad after 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.calls.record import Arm

Verdict = Literal["bad", "good", "continue"]

# Bets as shares of the largest allowed. Most weight is on large bets, which are best when errors
# are rare, as they are in an adapter that passed the gate; small ones keep noisy scores decidable.
BETS = np.array([0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
WEIGHTS = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class Outcome:
    """What is known of one session: its score lies in [low, high]; equal when it is labelled."""

    arm: Arm
    epoch: Hashable
    """Sessions are compared only within one epoch: a time of unchanged weights."""
    low: float
    high: float
    by_agreement: bool = True
    """Scored by agreement with the teacher alone; False when a caller's feedback had a part."""

    @property
    def labelled(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Block:
    """One canary session and the champion sessions beside it, as differences in [-1, 1].

    What is unknown is filled in against the verdict, for each test on its own: missing labels can
    neither promote nor roll back.
    """

    bad: float | None
    """Canary at its best minus labelled champions; None when no champion has a label."""
    good: float
    """Canary at its worst minus champions at their best."""


def e_bad(differences: ArrayLike, margin: float) -> NDArray[np.float64]:
    """Running e-values against "the canary is at most ``margin`` worse"; shape (n,) from (n,)."""
    gains = -(_checked(differences) + margin)
    return _mixture(gains, 1 / (1 + margin))


def e_good(differences: ArrayLike, margin: float) -> NDArray[np.float64]:
    """Running e-values against "the canary is at least ``margin`` worse"; shape (n,) from (n,)."""
    gains = _checked(differences) + margin
    return _mixture(gains, 1 / (1 - margin))


def match_blocks(outcomes: Iterable[Outcome], *, champion_is_teacher: bool) -> list[Block]:
    """Pair each canary session with the champion sessions next to it in assignment order.

    A canary takes every champion session of its epoch that waits; if none does, it waits for the
    next one. Sessions without a partner when the epoch ends are discarded, because a block across a
    change of weights compares two times. Pairing looks at the order alone, never at an outcome.

    When the champion is the teacher a canary need not wait: the teacher agrees with itself, so its
    outcome is 1 by definition. Where feedback had a part in the canary's score that comparison would
    be lopsided, so such a block counts only towards the harder test, ``good``.
    """
    blocks: list[Block] = []
    # Gateways learn of new weights moments apart, so epochs may interleave.
    waiting: dict[Hashable, tuple[deque[Outcome], list[Outcome]]] = {}
    for outcome in outcomes:
        canaries, champions = waiting.setdefault(outcome.epoch, (deque(), []))
        if outcome.arm == "canary":
            canaries.append(outcome)
        else:
            champions.append(outcome)
        if not canaries:
            continue
        if champions:
            blocks.append(_block(canaries.popleft(), champions))
            champions.clear()
        elif champion_is_teacher:
            canary = canaries.popleft()
            bad = canary.high - 1.0 if canary.by_agreement else None
            blocks.append(Block(bad, canary.low - 1.0))
    return blocks


@dataclass(frozen=True)
class TestResult:
    """Largest e-values so far and the verdict; ``bad`` comes first when both have crossed."""

    __test__ = False  # not a test class for pytest

    verdict: Verdict
    e_bad: float
    e_good: float
    blocks: int


def run_test(
    blocks: Sequence[Block], margin: float, alpha_bad: float, alpha_good: float
) -> TestResult:
    """Verdict on all blocks so far. A crossing is final: later blocks do not undo it.

    Raises ValueError for a margin outside [0, 1) or an alpha outside (0, 1).
    """
    if not (0 <= margin < 1 and 0 < alpha_bad < 1 and 0 < alpha_good < 1):
        raise ValueError("margin lies in [0, 1), both alphas between 0 and 1")
    bad = _largest(e_bad([block.bad for block in blocks if block.bad is not None], margin))
    good = _largest(e_good([block.good for block in blocks], margin))
    verdict: Verdict = "continue"
    if bad >= 1 / alpha_bad:
        verdict = "bad"
    elif good >= 1 / alpha_good:
        verdict = "good"
    return TestResult(verdict, bad, good, len(blocks))


def _block(canary: Outcome, champions: Sequence[Outcome]) -> Block:
    labelled = [champion.low for champion in champions if champion.labelled]
    best = sum(champion.high for champion in champions) / len(champions)
    bad = canary.high - sum(labelled) / len(labelled) if labelled else None
    return Block(bad, canary.low - best)


def _mixture(gains: NDArray[np.float64], largest_bet: float) -> NDArray[np.float64]:
    """Weighted mean over the bets of the running product of 1 + bet * gain."""
    with np.errstate(divide="ignore"):
        # Rounding may push a factor that is exactly zero a hair below it.
        factors = np.maximum(1 + BETS[:, None] * largest_bet * gains[None, :], 0.0)
        logs = np.log(factors).cumsum(axis=1) + np.log(WEIGHTS)[:, None]
    return np.exp(np.minimum(np.logaddexp.reduce(logs, axis=0), _LARGEST_LOG))


def _checked(differences: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(differences, dtype=float)
    if values.size and not (np.abs(values) <= 1 + 1e-12).all():
        raise ValueError("differences of two scores in [0, 1] lie in [-1, 1]")
    return values.reshape(-1)


def _largest(running: NDArray[np.float64]) -> float:
    return float(running.max(initial=1.0))
