"""How often would a canary be judged wrongly, and how long does a verdict take? Prints JSON.

Three rules on the same simulated sessions, looked at after every canary session:

* ``sequential``: the product's betting test, through the code that production runs;
* ``threshold``: means of the last 50 sessions of each arm, bad when the canary is below by the
  margin, good after 100 sessions without that (how progressive delivery tools analyse a canary);
* ``peeked_z``: a one-sided z-test at the same alpha, looked at after every session from the tenth.

A false rollback is a "bad" verdict on a canary as good as the champion; a false promotion is a "good"
verdict on one that is worse by exactly the margin, or by twice the margin.

    python bench/canary_errors.py [--runs 2000] [--sessions 500] [--margin 0.1] [--seed 7]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluators.sequential import e_bad, e_good

Scores = NDArray[np.float64]
# First canary session (from 1) with a bad and with a good verdict; 0 for never.
Verdicts = tuple[int, int]
Rule = Callable[[Scores, Scores, float, float], Verdicts]

WINDOW = 50
PATIENCE = 100
FIRST_LOOK = 10
BESIDE = 3  # champion sessions per canary session: a weight of 25 %


def sequential(canary: Scores, champion: Scores, margin: float, alpha: float) -> Verdicts:
    differences = canary - champion.mean(axis=1)
    return (
        _first(e_bad(differences, margin) >= 1 / alpha),
        _first(e_good(differences, margin) >= 1 / alpha),
    )


def threshold(canary: Scores, champion: Scores, margin: float, alpha: float) -> Verdicts:
    differences = _window_mean(canary) - _window_mean(champion.mean(axis=1))
    bad = differences < -margin
    bad[: WINDOW - 1] = False
    good = np.arange(1, len(canary) + 1) >= PATIENCE
    return _first(bad), _first(good)


def peeked_z(canary: Scores, champion: Scores, margin: float, alpha: float) -> Verdicts:
    from scipy.stats import norm

    counts = np.arange(1, len(canary) + 1)
    first = canary.cumsum() / counts
    second = champion.sum(axis=1).cumsum() / (counts * champion.shape[1])
    variance = first * (1 - first) / counts + second * (1 - second) / (counts * champion.shape[1])
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    critical = float(norm.ppf(1 - alpha))
    early = counts < FIRST_LOOK
    bad = (first - second) / deviation < -critical
    good = (first - second + margin) / deviation > critical
    return _first(bad & ~early), _first(good & ~early)


RULES: dict[str, Rule] = {"sequential": sequential, "threshold": threshold, "peeked_z": peeked_z}


def measure(
    canary: float,
    champion: float,
    *,
    runs: int,
    sessions: int,
    margin: float,
    alpha: float,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """Shares of bad and good verdicts per rule, and the median sessions to the first verdict.

    ``canary`` and ``champion`` are chances of a right answer. Bad comes first when both verdicts
    fall on one session.
    """
    random = np.random.default_rng(seed)
    verdicts: dict[str, list[Verdicts]] = {name: [] for name in RULES}
    for _ in range(runs):
        first = (random.random(sessions) < canary).astype(float)
        second = (random.random((sessions, BESIDE)) < champion).astype(float)
        for name, rule in RULES.items():
            verdicts[name].append(rule(first, second, margin, alpha))
    return {name: _shares(found, runs) for name, found in verdicts.items()}


def _shares(found: list[Verdicts], runs: int) -> dict[str, float | None]:
    bad = [bad for bad, good in found if bad and (not good or bad <= good)]
    good = [good for bad, good in found if good and (not bad or good < bad)]
    return {
        "bad": len(bad) / runs,
        "good": len(good) / runs,
        "undecided": 1 - (len(bad) + len(good)) / runs,
        "median_sessions_bad": float(np.median(bad)) if bad else None,
        "median_sessions_good": float(np.median(good)) if good else None,
    }


def _first(over: NDArray[np.bool_]) -> int:
    return int(over.argmax()) + 1 if over.any() else 0


def _window_mean(values: Scores) -> Scores:
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - WINDOW, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=500, help="canary sessions per run at most")
    parser.add_argument("--margin", type=float, default=0.1)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    margin = given.margin
    cases = {
        "equal, both right on 85 %": (0.85, 0.85),
        "equal, both right on 98 %": (0.98, 0.98),
        "flawless against the teacher": (1.0, 1.0),
        "right on 96 % against the teacher": (0.96, 1.0),
        "worse by the margin, champion 95 %": (0.95 - margin, 0.95),
        "worse by twice the margin, champion 95 %": (0.95 - 2 * margin, 0.95),
        "broken: right on 10 % against the teacher": (0.1, 1.0),
    }
    started = time.perf_counter()
    results = {}
    for place, (name, (canary, champion)) in enumerate(cases.items()):
        print(f"{place + 1}/{len(cases)} {name}", file=sys.stderr)
        results[name] = measure(
            canary,
            champion,
            runs=given.runs,
            sessions=given.sessions,
            margin=margin,
            alpha=given.alpha,
            seed=given.seed + place,
        )
    worse = results["worse by the margin, champion 95 %"]
    equal = results["equal, both right on 85 %"]
    summary = {
        name: {
            "false_rollback": equal[name]["bad"],
            "false_promotion": worse[name]["good"],
            "median_sessions_to_rollback_when_worse_by_twice_the_margin": results[
                "worse by twice the margin, champion 95 %"
            ][name]["median_sessions_bad"],
            "median_sessions_to_promotion_when_right_on_96_percent": results[
                "right on 96 % against the teacher"
            ][name]["median_sessions_good"],
        }
        for name in RULES
    }
    print(
        json.dumps(
            {
                "terms": vars(given) | {"champion_sessions_per_canary": BESIDE},
                "summary": summary,
                "cases": results,
                "seconds": round(time.perf_counter() - started, 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
