"""How often does the gate let a worse adapter pass, and an equal one?

A night's rows are those on which two adapters differ, by their share, and the rest, which decide nothing.
Which of the two is right where they differ is drawn, so that the candidate is equal to the incumbent, or
worse by the margin and half a point. The share is that of two real adapters on the same prompts (the first
run trains and asks them, which is long; later ones read ``var/``), or the one that is given.

    python bench/gate.py [--differ 0.24] [--quick] [--json FILE] [--nights 10000] [--seed 11]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.real_answers import real_answers
from evaluators.paired import loss_p_value
from evaluators.tries import level_of_try

MARGIN, LEVEL, TRIES, BEYOND = 0.05, 0.05, 30, 0.005
ROWS = (100, 300, 1000)
RUN_ROWS = 300


@cache
def least_won(lost: int, rows: int, number: int) -> int:
    """Won rows from which the gate lets it pass at its try ``number``; more than there are: never."""
    level = level_of_try(LEVEL, number)
    low, high = 0, rows - lost + 1
    while low < high:
        won = (low + high) // 2
        if loss_p_value(lost, won, rows, MARGIN) <= level:
            high = won
        else:
            low = won + 1
    return low


def passes(
    lost: NDArray[np.int64], won: NDArray[np.int64], rows: int, number: int
) -> NDArray[np.bool_]:
    least = {count: least_won(count, rows, number) for count in map(int, np.unique(lost))}
    return np.array([least[int(a)] <= b for a, b in zip(lost, won, strict=True)])


def nights(
    differ: float, mean: float, rows: int, count: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lost and won rows of each night, of a candidate whose mean difference is ``mean``.

    Args:
        differ: share of the rows on which the two differ.
    """
    worse = (1 - mean / differ) / 2
    drawn = random.binomial(rows, differ, size=count)
    lost = random.binomial(drawn, worse)
    return lost, drawn - lost


def differing(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Share of the prompts on which exactly one of two adapters is right."""
    first, second = (np.array([row["correct"] >= 1 for row in rows]) for rows in answers.values())
    return float((first != second).mean())


def measure(differ: float, count: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    bad = -MARGIN - BEYOND
    result: dict[str, Any] = {"differ": differ, "nights": count}
    for rows in ROWS:
        lost, won = nights(differ, bad, rows, count, random)
        even_lost, even_won = nights(differ, 0.0, rows, count, random)
        result[str(rows)] = {
            "false pass": float(passes(lost, won, rows, 1).mean()),
            "pass of an equal one": float(passes(even_lost, even_won, rows, 1).mean()),
            "fixed rule: false pass": float(np.mean(won >= lost)),
            "fixed rule: pass of an equal one": float(np.mean(even_won >= even_lost)),
        }
    passed, fixed = np.zeros((2, count), bool)
    for number in range(1, TRIES + 1):
        lost, won = nights(differ, bad, RUN_ROWS, count, random)
        passed |= passes(lost, won, RUN_ROWS, number)
        lost, won = nights(differ, bad, 100, count, random)
        fixed |= won >= lost
    result["30 nights"] = {
        "rows": RUN_ROWS,
        "false pass": float(passed.mean()),
        "fixed rule on 100 rows: false pass": float(fixed.mean()),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="500 nights; quick once the answers are kept"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--nights", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--differ", type=float, metavar="SHARE", help="of the rows; asks no adapters for it"
    )
    options = parser.parse_args()
    differ = options.differ or differing(real_answers())
    found = measure(differ, 500 if options.quick else options.nights, options.seed)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
