"""Does the certified threshold keep its risk, and which score of confidence shows most? On real answers.

The answers are those of ``bench/gate.py``'s adapters to what they never saw (the first run makes
them, which is long). They are the population: a resample draws validation rows from them with replacement,
certifies a threshold, and what it would show is counted over all of them. Beside each score alone: the
best of several at a divided level, as the judge does it; the score chosen on one half of the rows and
certified on the other; and the plain softmax threshold, an answer shown when its own probability
promises the risk. With --drawn the share of K more answers that say the same is one score more, on the
first --answers of them (drawn once and kept, which is K times as long).

    python bench/calibration.py [--quick] [--json FILE] [--resamples 1000] [--rows 300] [--answers N]
        [--adapter longer]... [--drawn K]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.real_answers import (
    ADAPTERS,
    ROWS,
    drawn_answers,
    real_answers,
    requests_of,
)
from evaluators.calibration import calibrate, calibrate_best
from infra.prompting.answers import ParsedAnswer, parse_answer
from infra.prompting.confidence import (
    SCORES,
    agreement,
    agreement_name,
    all_confidences,
    answers_drawn,
)

RISKS, LEVEL = (0.03, 0.01), 0.05
Numbers = NDArray[np.float64]
Rule = Callable[[NDArray[np.int64]], tuple[str, float] | None]
"""From the drawn rows to the score and threshold in use; None: nothing is shown."""


def population(answers: Sequence[dict[str, Any]]) -> tuple[dict[str, Numbers], Numbers]:
    """Confidence by score (-inf: never shown) and whether it is right, of every answer."""
    right = np.array([float(row["correct"] >= 1) for row in answers])
    names = [*SCORES, *(name for name in answers[0] if answers_drawn(name))]
    found = {name: np.full(len(answers), -math.inf) for name in names}
    for place, row in enumerate(answers):
        if row["checks"]:
            said = all_confidences(row["text"], row["tokens"], row["logprobs"])
            for name in names:
                found[name][place] = row[name] if name in row else said[name]
    return found, right


def with_agreement(
    adapter: str, answers: Sequence[dict[str, Any]], count: int
) -> list[dict[str, Any]]:
    """The same answers, each with the share of ``count`` drawn ones that agree."""

    def read(said: dict[str, Any], request: dict[str, Any]) -> ParsedAnswer:
        return parse_answer(said["text"], request, complete=said["finish"] == "stop")

    found = zip(answers, requests_of(answers), drawn_answers(adapter, answers, count), strict=True)
    return [
        row
        | {
            agreement_name(count): agreement(
                read(row, request), [read(other, request) for other in drawn]
            )
        }
        for row, request, drawn in found
    ]


def rules(scores: dict[str, Numbers], right: Numbers, risk: float) -> dict[str, Rule]:
    def alone(name: str) -> Rule:
        def rule(rows: NDArray[np.int64]) -> tuple[str, float] | None:
            found = calibrate(list(scores[name][rows]), list(right[rows]), risk, LEVEL)
            return None if found.value is None else (name, found.value)

        return rule

    def best(rows: NDArray[np.int64]) -> tuple[str, float] | None:
        drawn = {name: list(values[rows]) for name, values in scores.items()}
        found = calibrate_best(drawn, list(right[rows]), risk, LEVEL)
        return None if found.value is None else (found.score, found.value)

    def halves(rows: NDArray[np.int64]) -> tuple[str, float] | None:
        first, second = rows[::2], rows[1::2]
        name = max(scores, key=lambda each: most_shown(scores[each][first], right[first], risk))
        return alone(name)(second)

    return {
        **{name: alone(name) for name in scores},
        "best of all, level divided": best,
        "chosen on one half": halves,
        "plain softmax threshold": lambda rows: ("sequence", math.log(1 - risk)),
    }


def most_shown(confidence: Numbers, right: Numbers, risk: float) -> int:
    """The most rows that could be shown here within the risk."""
    order = np.argsort(-confidence, kind="stable")
    order = order[np.isfinite(confidence[order])]
    wrong = np.cumsum(1 - right[order])
    within = np.flatnonzero(wrong <= risk * np.arange(1, order.size + 1))
    return int(within[-1]) + 1 if within.size else 0


def measure(
    answers: Sequence[dict[str, Any]], risk: float, rows: int, resamples: int, seed: int
) -> dict[str, Any]:
    scores, right = population(answers)
    random = np.random.default_rng(seed)
    draws = [random.integers(0, right.size, rows) for _ in range(resamples)]
    result: dict[str, Any] = {"answers": int(right.size), "right": float(right.mean())}
    for name, values in scores.items():
        result[f"{name}: could show"] = most_shown(values, right, risk) / right.size
    for name, rule in rules(scores, right, risk).items():
        coverage, broken, served = [], 0, []
        for drawn in draws:
            used = rule(drawn)
            shown = np.zeros(right.size, bool) if used is None else scores[used[0]] >= used[1]
            error = 1 - right[shown].mean() if shown.any() else 0.0
            coverage.append(shown.mean())
            served.append(error)
            broken += error > risk
        result[name] = {
            "coverage": float(np.mean(coverage)),
            "coverage, 5th percentile": float(np.quantile(coverage, 0.05)),
            "served error": float(np.mean(served)),
            "share beyond the risk": broken / resamples,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="50 resamples; quick once the answers are kept"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=300, help="validation rows of a resample")
    parser.add_argument(
        "--answers",
        type=int,
        default=ROWS,
        help=f"held-out requests that are asked of each adapter; with --drawn the first of {ROWS}",
    )
    parser.add_argument(
        "--adapter", action="append", choices=list(ADAPTERS), help="asked for; default: each"
    )
    parser.add_argument(
        "--drawn", type=int, default=0, metavar="K", help="answers drawn beside each"
    )
    parser.add_argument("--seed", type=int, default=17)
    options = parser.parse_args()
    names = options.adapter or tuple(ADAPTERS)
    if options.drawn:
        population_of = {
            name: with_agreement(name, answers[: options.answers], options.drawn)
            for name, answers in real_answers(ROWS, names).items()
        }
    else:
        population_of = real_answers(options.answers, names)
    resamples = 50 if options.quick else options.resamples
    found = {
        "level": LEVEL,
        "validation rows": options.rows,
        "resamples": resamples,
        **{
            f"{name}, risk {risk:.0%}": measure(
                answers, risk, options.rows, resamples, options.seed
            )
            for name, answers in population_of.items()
            for risk in RISKS
        },
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
