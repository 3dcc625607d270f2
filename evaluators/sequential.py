"""Sequential test of a canary against its concurrent champion, valid at every look.

Sessions come in assignment order and are cut into blocks of canary and champion sessions that stand
side by side. Two e-processes (``evaluators/betting.py``, with the argument for their validity) run
over the blocks: ``bad`` doubts "the canary is at most ``rollback_margin`` worse", ``good`` doubts "the
canary is at least ``margin`` worse". A verdict falls when one reaches 1 / alpha.

What is assumed: arms are randomized, outcomes are independent given the past, and on average over a
block the doubted hypothesis holds. Where blocks end depends on the arms alone, never on an outcome.

How long it takes (alpha 0.05, margin 0.1 both ways, beside the teacher): a canary without an error is
good after 34 sessions, one that is always wrong is bad after 4.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evaluators.betting import Counts, Numbers, as_good, worse
from infra.calls.record import Arm

Verdict = Literal["bad", "good", "continue"]

# A block ends when the ratio of its arms is within this factor of the ratio of its epoch so far: a
# canary beside one champion tells half as much as beside nine (infra/decisions/0014).
BALANCE = 0.5
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class Outcome:
    """What is known of one session: its score lies in [low, high]; equal when it is labelled."""

    arm: Arm
    epoch: Hashable
    """Sessions are compared only within one epoch: a time of unchanged weights."""
    low: float
    high: float

    @property
    def labelled(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Block:
    """Canary sessions and the champion sessions beside them: how many, and sums of their scores.

    What is unknown is filled in against the verdict, for each test on its own: missing labels can
    neither promote nor roll back.
    """

    canaries: int
    champions: int
    """0: the teacher, who agrees with itself, was no part of it but is known to score 1."""
    canary_low: float
    canary_high: float
    champion_low: float
    champion_high: float


def block_ends(arms: Iterable[Arm], *, champion_is_teacher: bool = False) -> list[int]:
    """Where the blocks of one epoch end: places in assignment order, each after its last session.

    A block holds both arms, in about the ratio of the epoch so far. When the champion is the teacher
    a canary need not wait for company.
    """
    ends: list[int] = []
    canaries = champions = all_canaries = all_champions = 0
    for place, arm in enumerate(arms):
        if arm == "canary":
            canaries += 1
            all_canaries += 1
        else:
            champions += 1
            all_champions += 1
        if champion_is_teacher:
            ready = canaries > 0
        else:
            mine, usual = champions * all_canaries, canaries * all_champions
            ready = min(canaries, champions) > 0 and mine >= BALANCE * usual
            ready = ready and usual >= BALANCE * mine
        if ready:
            ends.append(place + 1)
            canaries = champions = 0
    return ends


def match_blocks(outcomes: Iterable[Outcome], *, champion_is_teacher: bool) -> list[Block]:
    """Cut the sessions of each epoch into blocks, in the order in which the blocks are complete.

    Sessions left over when an epoch ends are discarded, because a block across a change of weights
    compares two times.
    """
    # Gateways learn of new weights moments apart, so epochs may interleave.
    epochs: dict[Hashable, list[tuple[int, Outcome]]] = {}
    for place, outcome in enumerate(outcomes):
        epochs.setdefault(outcome.epoch, []).append((place, outcome))
    found: list[tuple[int, Block]] = []
    for members in epochs.values():
        start = 0
        arms = [outcome.arm for _, outcome in members]
        for end in block_ends(arms, champion_is_teacher=champion_is_teacher):
            block = _block([outcome for _, outcome in members[start:end]])
            found.append((members[end - 1][0], block))
            start = end
    return [block for _, block in sorted(found, key=lambda item: item[0])]


@dataclass(frozen=True)
class TestResult:
    """Largest e-values so far and the verdict; ``bad`` comes first when both have crossed."""

    __test__ = False  # not a test class for pytest

    verdict: Verdict
    e_bad: float
    e_good: float
    blocks: int
    path_bad: tuple[float, ...] = field(default=(), repr=False)
    """The e-value after each block, for a picture."""
    path_good: tuple[float, ...] = field(default=(), repr=False)


def run_test(
    blocks: Sequence[Block],
    margin: float,
    alpha_bad: float,
    alpha_good: float,
    *,
    rollback_margin: float | None = None,
    known: float = 1.0,
    carried: float = 1.0,
) -> TestResult:
    """Verdict on all blocks so far. A crossing is final: later blocks do not undo it.

    Args:
        blocks: in order.
        margin: a canary worse by this or more must not be promoted, beyond chance ``alpha_good``.
        alpha_bad: chance of a rollback of a canary at most ``rollback_margin`` worse.
        alpha_good: chance of a promotion of one at least ``margin`` worse.
        rollback_margin: None: ``margin``.
        known: the champion's mean in blocks without a champion session.
        carried: e-value against the candidate from evidence before the first block (the shadow's).
            As e-values of successive data multiply, the product keeps the level ``alpha_bad``.

    Raises ValueError for a margin that ``betting`` refuses or an alpha outside (0, 1).
    """
    tolerated = margin if rollback_margin is None else rollback_margin
    if not (0 < alpha_bad < 1 and 0 < alpha_good < 1):
        raise ValueError(f"alphas lie between 0 and 1, got {alpha_bad:g} and {alpha_good:g}")
    bad = worse(counts_for_bad(blocks), tolerated, known) + math.log(max(carried, 1e-300))
    good = as_good(counts_for_good(blocks), margin, known)
    largest_bad, largest_good = max(_largest(bad), carried), _largest(good)
    verdict: Verdict = "continue"
    if largest_bad >= 1 / alpha_bad:
        verdict = "bad"
    elif largest_good >= 1 / alpha_good:
        verdict = "good"
    return TestResult(verdict, largest_bad, largest_good, len(blocks), _path(bad), _path(good))


def counts_for_bad(blocks: Iterable[Block]) -> Counts:
    """Canaries at their best, champions at their worst."""
    return Counts.of(
        (block.canaries, block.canary_high, block.champions, block.champion_low) for block in blocks
    )


def counts_for_good(blocks: Iterable[Block]) -> Counts:
    """Canaries at their worst, champions at their best."""
    return Counts.of(
        (block.canaries, block.canary_low, block.champions, block.champion_high) for block in blocks
    )


def _block(members: Sequence[Outcome]) -> Block:
    canaries = [outcome for outcome in members if outcome.arm == "canary"]
    champions = [outcome for outcome in members if outcome.arm == "champion"]
    for outcome in members:
        if not 0 <= outcome.low <= outcome.high <= 1:
            raise ValueError(f"a score lies in [0, 1], got {outcome.low} to {outcome.high}")
    return Block(
        len(canaries),
        len(champions),
        sum(outcome.low for outcome in canaries),
        sum(outcome.high for outcome in canaries),
        sum(outcome.low for outcome in champions),
        sum(outcome.high for outcome in champions),
    )


def _path(running: Numbers) -> tuple[float, ...]:
    return tuple(np.exp(np.minimum(running, _LARGEST_LOG)).tolist())


def _largest(running: Numbers) -> float:
    return math.exp(min(float(running.max(initial=0.0)), _LARGEST_LOG))
