"""Which valid test of a canary is the strongest? The search behind infra/decisions/0014.

Every candidate is an e-process at the same level and margin (rollback beyond 1 point, level 2.75 %) on
the same simulated sessions: base rate 0.85, a 10 % canary, 500 canary sessions at most. Prints for each
how often it rolls back a canary 10 points worse and after how many labels, the same for 20 points, and
how often an equal one.

    python bench/rollout_search.py [--quick] [--json FILE] [--runs 4000] [--seed 11]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluators import betting, sequential
from evaluators.betting import Counts, paired_worse, worse
from evaluators.simulation import Stream, Terms, Traffic, counts_of, streams

Numbers = NDArray[np.float64]
LEVEL, MARGIN, SHARE = 0.0275, 0.01, 0.1
TERMS = Terms(alpha_bad=LEVEL, rollback_margin=MARGIN, steps=(SHARE,), max_sessions=500)
CELLS = {
    "-10": (0.85, 0.1),
    "-20": (0.85, 0.2),
    "equal 0.85": (0.85, 0.0),
    "equal 0.70": (0.7, 0.0),
}
PAIRS = {"-10": (0.12, 0.02), "-20": (0.22, 0.02), "equal, 10 % differ": (0.05, 0.05)}

# Log e-values at the looks, and the canary sessions by each.
Result = tuple[Numbers, Numbers]
Candidate = Callable[[Stream], Result]


@contextmanager
def changed(module: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def product(stream: Stream) -> Result:
    counts, _ = counts_of(stream)
    return worse(counts, MARGIN), np.cumsum(counts.canaries[0])


def with_harms(*harms: tuple[float, float]) -> Candidate:
    def run(stream: Stream) -> Result:
        with changed(betting, HARMS=harms):
            return product(stream)

    return run


def differences(stream: Stream) -> tuple[Numbers, Numbers]:
    """Canary mean less champion mean of each block."""
    counts, _ = counts_of(stream)
    d = counts.canary_sum / counts.canaries - counts.champion_sum / counts.champions
    return d, np.cumsum(counts.canaries[0])


def fixed_bets(stream: Stream) -> Result:
    """Bets on differences, mixed over fixed shares of the largest (the product's former test)."""
    d, at = differences(stream)
    shares, weights = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0), (0.05, 0.1, 0.15, 0.2, 0.2, 0.3)
    logs = [
        np.cumsum(np.log(np.maximum(1 - share / (1 + MARGIN) * (d + MARGIN), 1e-300)), axis=1)
        + np.log(weight)
        for share, weight in zip(shares, weights, strict=True)
    ]
    return np.logaddexp.reduce(logs, axis=0), at


def adaptive_bets(stream: Stream) -> Result:
    """aGRAPA: the bet is the running mean over the running mean square (Waudby-Smith & Ramdas, B.3)."""
    d, at = differences(stream)
    return np.cumsum(np.log1p(-_agrapa(-(d + MARGIN)) * (d + MARGIN)), axis=1), at


def _agrapa(gains: Numbers) -> Numbers:
    n = np.arange(gains.shape[1]) + 2.0
    mean = (0.1 + np.cumsum(gains, axis=1) - gains) / n
    square = (0.25 + np.cumsum(gains**2, axis=1) - gains**2) / n
    return np.clip(mean / square, 0.0, 0.9 / (1 + MARGIN))


def by_share(stream: Stream) -> Result:
    """Each session a block of its own, the canary's share known: no matching, but nothing may lie.

    The centre and the stake are those of a block with exactly that share.
    """
    counts, _ = counts_of(stream)
    nine = Counts(
        counts.canaries,
        counts.canary_sum,
        counts.champions,
        counts.champion_sum,
    )
    usual = np.broadcast_to((1 - SHARE) / SHARE, counts.canaries.shape)
    believed = betting._believed_champion(nine, 1.0)
    logs = []
    for harm, weight in betting.HARMS:
        canary = np.clip(believed - MARGIN - harm, 1e-3, 1 - 1e-3)
        share = 1 / (1 + usual)
        centre = betting._projection(share, canary, believed, MARGIN)
        below = centre - MARGIN
        stake = (1 - share) * share * (below - canary) / (below * (1 - below))
        stake += share * (1 - share) * (believed - centre) / (centre * (1 - centre))
        stake = np.minimum(stake, 0.999 * np.minimum(share / (1 - below), (1 - share) / centre))
        terms = betting._log_terms(nine.canaries, nine.canary_sum, below, stake / share)
        terms += betting._log_terms(nine.champions, nine.champion_sum, centre, -stake / (1 - share))
        logs.append(np.cumsum(terms, axis=1) + np.log(weight))
    return np.logaddexp.reduce(logs, axis=0), np.cumsum(counts.canaries[0])


def with_covariate(weight: float) -> Callable[[Stream, Numbers], Result]:
    """Control variate: score less ``weight`` times an offline score of the prompt, put back into [0, 1].

    The offline score of a prompt is known before its arm is drawn, so its mean is the same in both
    arms and the difference of the means stays what it was. No longer right or wrong, such a score
    needs the linear terms of each session instead of the block's sums.
    """

    def run(stream: Stream, offline: Numbers) -> Result:
        canary, starts = stream.sessions.canary, stream.sessions.starts[:-1]
        score = (stream.right - weight * offline + weight) / (1 + weight)
        margin = MARGIN / (1 + weight)
        n = np.add.reduceat(canary, starts, dtype=float)
        k = np.add.reduceat(~canary, starts, dtype=float)
        share = np.repeat(n / (n + k), np.diff(stream.sessions.starts))
        blocks = np.add.reduceat(score * ~canary, starts, axis=1)
        squares = np.add.reduceat(score**2 * ~canary, starts, axis=1)
        past = lambda sums: np.cumsum(sums, axis=1) - sums  # noqa: E731
        seen = 4.0 + past(np.broadcast_to(k, blocks.shape))
        mean = (4.0 * (0.9 - weight * 0.85 + weight) / (1 + weight) + past(blocks)) / seen
        spread = np.maximum((4.0 * (0.01 + mean**2) + past(squares)) / seen - mean**2, 0.01)
        logs = []
        for harm, part in betting.HARMS:
            gap = harm / (1 + weight)
            wide = lambda values: np.repeat(values, np.diff(stream.sessions.starts), axis=1)  # noqa: E731
            centre = wide(mean) - share * gap
            # The spread of a canary that does the harm is a little larger.
            stake = share * (1 - share) * gap / (wide(spread) * 1.25)
            below = centre - margin
            stake = np.minimum(stake, 0.95 * np.minimum(share / (1 - below), (1 - share) / centre))
            bet = np.where(canary, stake / share, -stake / (1 - share))
            terms = np.log1p(-bet * (score - np.where(canary, below, centre)))
            logs.append(np.cumsum(np.add.reduceat(terms, starts, axis=1), axis=1) + np.log(part))
        return np.logaddexp.reduce(logs, axis=0), np.cumsum(n)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="200 runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    runs = min(given.runs, 200) if given.quick else given.runs
    started = time.perf_counter()
    candidates: dict[str, tuple[Candidate, float]] = {
        "bets on differences, fixed mixture": (fixed_bets, 0.0),
        "bets on differences, aGRAPA": (adaptive_bets, 0.0),
        "exact blocks, one canary each": (product, 0.0),
        "exact blocks, balanced: the product's": (product, sequential.BALANCE),
        "the same, one harm of 12 points": (with_harms((0.11, 1.0)), sequential.BALANCE),
        "the same, harms from 4 to 60 points": (
            with_harms(*((harm, 1 / 6) for harm in (0.03, 0.07, 0.12, 0.2, 0.35, 0.6))),
            sequential.BALANCE,
        ),
        "no blocks, share of the canary known": (by_share, sequential.BALANCE),
    }
    table: dict[str, dict[str, Any]] = {}
    for name, (candidate, balance) in candidates.items():
        with changed(sequential, BALANCE=balance):
            table[name] = {
                cell: _measure(candidate, Traffic(champion=rate, harm=harm), runs, given.seed)
                for cell, (rate, harm) in CELLS.items()
            }
        print(name, table[name], file=sys.stderr, flush=True)
    table |= covariates(runs, given.seed)
    result = {
        "level": LEVEL,
        "margin": MARGIN,
        "runs": runs,
        "table": table,
        "paired": paired(runs, given.seed),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def covariates(runs: int, seed: int) -> dict[str, dict[str, Any]]:
    """Three quarters of the prompts easy (0.95), a quarter hard (0.55); the offline score says which.

    ``mistaken``: for that share of the prompts it says what it would of another prompt.
    """
    rows: dict[str, dict[str, Any]] = {}
    for weight, mistaken in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.5)):
        name = f"exact blocks, linear, control variate times {weight:g}, {mistaken:.0%} mistaken"
        rows[name] = {}
        for cell, (rate, harm) in CELLS.items():
            random = np.random.default_rng([seed, 2])
            hits = []
            for stream in streams(Traffic(champion=rate, harm=harm), TERMS, runs=runs, seed=seed):
                easy = random.random(stream.right.shape) < 0.75
                another = random.random(easy.shape) < 0.75
                said = np.where(random.random(easy.shape) < mistaken, another, easy)
                offline = np.where(said, rate + 0.1, rate - 0.3)
                chance = np.where(easy, rate + 0.1, rate - 0.3) - harm * stream.sessions.canary
                right = random.random(stream.right.shape) < chance
                log_e, at = with_covariate(weight)(
                    Stream(stream.sessions, right, stream.known), offline
                )
                hits.append(_labels(log_e, at))
            rows[name][cell] = _summary(np.concatenate(hits))
        print(name, rows[name], file=sys.stderr, flush=True)
    return rows


def paired(runs: int, seed: int) -> dict[str, dict[str, Any]]:
    def mixture(d: Numbers) -> Numbers:
        shares, weights = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0), (0.05, 0.1, 0.15, 0.2, 0.2, 0.3)
        logs = [
            np.cumsum(np.log(np.maximum(1 - s / (1 + MARGIN) * (d + MARGIN), 1e-300)), axis=1)
            + np.log(w)
            for s, w in zip(shares, weights, strict=True)
        ]
        return np.asarray(np.logaddexp.reduce(logs, axis=0))

    tests: dict[str, Callable[[Numbers], Numbers]] = {
        "fixed mixture": mixture,
        "aGRAPA": lambda d: np.cumsum(np.log1p(-_agrapa(-(d + MARGIN)) * (d + MARGIN)), axis=1),
        "harms over a running mean square: the product's": lambda d: paired_worse(d, MARGIN),
    }
    rows: dict[str, dict[str, Any]] = {name: {} for name in tests}
    for cell, (minus, plus) in PAIRS.items():
        drawn = np.random.default_rng(seed).random((runs, 500))
        d = np.where(drawn < minus, -1.0, np.where(drawn < minus + plus, 1.0, 0.0))
        for name, test in tests.items():
            rows[name][cell] = _summary(_labels(test(d), np.arange(500) + 1.0))
    return rows


def _measure(candidate: Candidate, traffic: Traffic, runs: int, seed: int) -> dict[str, Any]:
    hits = [_labels(*candidate(stream)) for stream in streams(traffic, TERMS, runs=runs, seed=seed)]
    return _summary(np.concatenate(hits))


def _labels(log_e: Numbers, at: Numbers) -> Numbers:
    """Canary labels at the crossing; infinite without one."""
    over = log_e >= np.log(1 / LEVEL)
    return np.where(over.any(axis=1), at[over.argmax(axis=1)], np.inf)


def _summary(labels: Numbers) -> dict[str, Any]:
    median = float(np.median(labels))
    return {
        "bad": round(float(np.isfinite(labels).mean()), 4),
        "median": median if np.isfinite(median) else None,
    }


if __name__ == "__main__":
    main()
