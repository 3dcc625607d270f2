"""How often is a canary judged wrongly, and how many labels does a right verdict take?

The product's decision code and the rules of other tools (``bench/support/rollout_rules.py``) on the same
simulated sessions. Policy: the default one, for one metric of it: quality, at its share (55 %) of the
declared 5 % for rollback where every metric is in use but ``tools``, which needs a teacher as champion.
It is rolled back when worse by more than 1 point beside an adapter (5 beside the teacher), and promoted
when not worse by 5 points or more.

* ``equal``: canary as good as the champion; every rollback is false.
* ``worse``: canary worse by exactly the margin, 5 points; every promotion is false.
* ``feedback``: an equal canary whose callers send feedback on 80 % of the right answers, or of the
  wrong ones, or only in one arm, a tenth of it contrary to the teacher; every rollback is false.
* ``teacher``: the same beside the teacher, with a canary worse by what is tolerated there, 5 points:
  every rollback is false, and every promotion.
* ``power``: canary 10 or 20 points worse at a base rate of 0.85 and a 10 % canary.
* ``judged``: the same while a judge calls 10, 20 or 30 % of the canary's wrong answers as good
  (``judge.rollout_share`` times how often it says so): what that costs. The other rules know no judge.
* ``shadow``: both answer the same prompts, which differ in 14 % (10 points) and 24 % (20 points).

Cells: base rate, share of the canary, labels at once or late by outcome (wrong answers are known at
once, right ones after 2 hours on average, at 100 sessions an hour; the horizon is 8 hours), and a drift
of -10 points, common to both arms, from the first session to the last. A rollout ends after 500
canary sessions (200 at a share of 1 %).

    python bench/rollout.py [--quick] [--json FILE] [--runs 10000] [--seed 7] [--processes 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.rollout_rules import LOOK, NEVER, RULES, Seen, Setting
from evaluators.simulation import Stream, Terms, Traffic, judge, simulate_shadow, streams
from flows.observing import evidence_policy
from serving.rollout.policy import RolloutPolicy

POLICY = evidence_policy(RolloutPolicy(latency_objective_seconds=1.0, escalation_allowance=0.1))
ALPHA, MARGIN, ROLLBACK_MARGIN = POLICY.alpha_bad, POLICY.margin, POLICY.tolerated(False)
LEVEL, TEACHER_LEVEL = POLICY.quality_level(False), POLICY.quality_level(True)
RATES = (0.70, 0.85, 0.95, 0.99)
SHARES = (0.01, 0.1, 0.25, 0.5)
MEAN_DELAY_SESSIONS, HORIZON_DELAYS = 200, 4
DRIFT = -0.1
PAIRS = 500
SAID, CONTRARY = 0.8, 0.1
# Who says something: share of the right answers, of the wrong ones, and in which arm.
FEEDBACK: dict[str, tuple[float, float, Any]] = {
    "": (0.0, 0.0, "both"),
    "right": (SAID, 0.0, "both"),
    "wrong": (0.0, SAID, "both"),
    "canary": (SAID, SAID, "canary"),
    "champion": (SAID, SAID, "champion"),
}
FORGIVEN = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Cell:
    kind: str
    rate: float
    harm: float
    share: float
    late: bool = False
    drift: bool = False
    feedback: str = ""
    forgiven: float = 0.0

    @property
    def terms(self) -> Terms:
        most = 200 if self.share < 0.05 else 500
        if self.kind == "teacher":
            tolerated = POLICY.tolerated(True)
            return Terms(MARGIN, tolerated, TEACHER_LEVEL, ALPHA, (self.share,), 20, most, True)
        return Terms(MARGIN, ROLLBACK_MARGIN, LEVEL, ALPHA, (self.share,), max_sessions=most)

    @property
    def traffic(self) -> Traffic:
        right, wrong, on = FEEDBACK[self.feedback]
        return Traffic(
            feedback_right=right,
            feedback_wrong=wrong,
            contrary=CONTRARY if self.kind == "feedback" else 0.0,
            feedback_on=on,
            forgiven=self.forgiven,
            champion=self.rate,
            harm=self.harm,
            drift=DRIFT if self.drift else 0.0,
            missing_right=math.exp(-HORIZON_DELAYS) if self.late else 0.0,
        )


SPOKEN = [name for name in FEEDBACK if name]


def cells() -> list[Cell]:
    return [
        Cell(kind, rate, harm, share, late, drift)
        for (kind, harm), rate, share, late, drift in itertools.product(
            (("equal", 0.0), ("worse", MARGIN)), RATES, SHARES, (False, True), (False, True)
        )
    ] + [
        *(Cell("power", 0.85, harm, 0.1) for harm in (0.1, 0.2)),
        *(Cell("feedback", rate, 0.0, 0.1, feedback=said) for rate in RATES for said in SPOKEN),
        *(
            Cell("teacher", 1.0, POLICY.tolerated(True), 0.1, feedback=said)
            for said in ("", *SPOKEN)
        ),
        *(
            Cell("judged", 0.85, harm, 0.1, forgiven=forgiven)
            for harm in (0.1, 0.2)
            for forgiven in FORGIVEN
        ),
    ]


def measure(job: tuple[Cell, int, int]) -> dict[str, Any]:
    """Shares of bad and good verdicts of every rule in one cell."""
    cell, runs, seed = job
    random = np.random.default_rng([seed, 1])
    verdicts: dict[str, list[tuple[Any, Any]]] = {"nightschool": [], **{name: [] for name in RULES}}
    for stream in streams(cell.traffic, cell.terms, runs=runs, seed=seed):
        ends = judge(stream, cell.terms)
        verdicts["nightschool"].append((ends.bad, ends.good))
        if cell.kind == "judged":
            continue
        seen = arrived(stream, cell, random)
        for name, rule in RULES.items():
            bad, good = rule(seen, Setting(MARGIN, ALPHA, cell.rate))
            at = np.minimum(np.minimum(bad, good), seen.canaries.shape[1] - 1)
            labels = seen.canaries[np.arange(len(at)), at].astype(np.int64)
            is_bad = (bad != NEVER) & (bad <= good)
            is_good = (good != NEVER) & ~is_bad
            verdicts[name].append((np.where(is_bad, labels, 0), np.where(is_good, labels, 0)))
    rules = {name: _summary(found) for name, found in verdicts.items() if found}
    return {**asdict(cell), "rules": rules}


def arrived(stream: Stream, cell: Cell, random: np.random.Generator) -> Seen:
    """Labels in the order of their arrival. The champion was there before: its older labels come in."""
    canary = stream.sessions.canary
    width = LOOK / cell.share  # sessions between two looks
    looks = round(cell.terms.max_sessions / LOOK)
    right = stream.right
    times = np.broadcast_to(np.arange(len(canary), dtype=np.float32), right.shape)
    before = 5 * MEAN_DELAY_SESSIONS if cell.late else 0
    if cell.late:
        times = times + _delays(random, right)
    canaries = _by_look(times[:, canary], right[:, canary], width, looks)
    champions = _by_look(times[:, ~canary], right[:, ~canary], width, looks)
    if before:
        old = random.random((len(right), before), dtype=np.float32) < cell.rate
        came = np.arange(-before, 0, dtype=np.float32) + _delays(random, old)
        older = _by_look(np.where(came < 0, np.inf, came), old, width, looks)
        champions = (champions[0] + older[0], champions[1] + older[1])
    return Seen(canaries[0], canaries[1], champions[0], champions[1])


def _delays(random: np.random.Generator, right: NDArray[np.bool_]) -> NDArray[np.float32]:
    drawn = random.exponential(MEAN_DELAY_SESSIONS, right.shape).astype(np.float32)
    return np.where(right, drawn, np.float32(0))


def _by_look(
    times: NDArray[np.float32], right: NDArray[np.bool_], width: float, looks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and right labels that came by the end of each look, cumulative."""
    runs = len(right)
    place = np.minimum(times / width, looks).astype(np.int64)
    flat = (place + np.arange(runs)[:, None] * (looks + 1)).ravel()
    size = runs * (looks + 1)
    counts = (
        np.bincount(flat, minlength=size),
        np.bincount(flat, weights=right.ravel(), minlength=size),
    )
    every, rights = (
        values.reshape(runs, looks + 1)[:, :looks].cumsum(axis=1).astype(float) for values in counts
    )
    return every, rights


def _summary(found: list[tuple[Any, Any]]) -> dict[str, float | None]:
    bad, good = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return {
        "bad": float((bad > 0).mean()),
        "good": float((good > 0).mean()),
        "median_labels_bad": _median(bad),
        "median_labels_good": _median(good),
    }


def _median(labels: NDArray[np.int64]) -> float | None:
    """Over all runs, those without a verdict as the longest; None where they are the most."""
    value = float(np.median(np.where(labels > 0, labels, NEVER / 4)))
    return value if value < NEVER / 8 else None


def shadow(runs: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for name, only_champion, only_candidate in (
        ("10 points worse", 0.12, 0.02),
        ("20 points worse", 0.22, 0.02),
        ("equal, 4 % differ", 0.02, 0.02),
        ("equal, 10 % differ", 0.05, 0.05),
        ("equal, 20 % differ", 0.1, 0.1),
    ):
        pairs = simulate_shadow(
            only_champion,
            only_candidate,
            rollback_margin=ROLLBACK_MARGIN,
            alpha_bad=LEVEL,
            pairs=PAIRS,
            runs=runs,
            seed=seed,
        )
        share = float((pairs > 0).mean())
        rows.append({"case": name, "bad": share, "median_pairs_bad": _median(pairs)})
    return rows


def summarize(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per rule: the worst cell for each error, and the power."""
    names = max((row["rules"] for row in rows), key=len)

    def worst(name: str, kind: str, verdict: str) -> dict[str, Any] | None:
        found = [row for row in rows if row["kind"] == kind]
        if not found:
            return None
        row = max(found, key=lambda item: item["rules"][name][verdict])
        cell = {key: row[key] for key in ("rate", "share", "late", "drift", "feedback")}
        bound = 0.01 if verdict == "bad" and kind != "teacher" else ALPHA
        over = sum(item["rules"][name][verdict] > bound for item in found)
        return {"share": row["rules"][name][verdict], "cell": cell, "cells_over": over}

    return {
        name: {
            "false_rollback": worst(name, "equal", "bad"),
            "false_promotion": worst(name, "worse", "good"),
            "false_rollback_with_feedback": worst(name, "feedback", "bad"),
            "false_rollback_beside_the_teacher": worst(name, "teacher", "bad"),
            "false_promotion_beside_the_teacher": worst(name, "teacher", "good"),
            "power": {
                f"{row['harm']:g}": row["rules"][name] for row in rows if row["kind"] == "power"
            },
        }
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="per cell")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="200 runs of a few cells")
    parser.add_argument("--kinds", nargs="+", help="only cells of these kinds")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    given = parser.parse_args()
    chosen = list(enumerate(cells()))  # its place gives a cell its seed, whatever else is run
    runs = given.runs
    if given.quick:
        runs = min(runs, 200)
        chosen = [(place, cell) for place, cell in chosen if cell.share == 0.1 and not cell.drift]
    if given.kinds:
        chosen = [(place, cell) for place, cell in chosen if cell.kind in given.kinds]
    started = time.perf_counter()
    jobs = [(cell, runs, given.seed + place) for place, cell in chosen]
    jobs.sort(key=lambda job: job[0].share)  # the long ones first
    rows = []
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for row in pool.imap_unordered(measure, jobs):
            rows.append(row)
            if given.json:  # a long run that is cut off leaves what it found
                given.json.with_suffix(".part").write_text(json.dumps(rows) + "\n")
            print(f"{len(rows)}/{len(jobs)}", end="\r", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: json.dumps([row[key] for key in sorted(row) if key != "rules"]))
    result = {
        "policy": {
            "alpha": ALPHA,
            "level_of_quality": LEVEL,
            "margin": MARGIN,
            "rollback_margin": ROLLBACK_MARGIN,
        },
        "runs": runs,
        "seed": given.seed,
        "summary": summarize(rows),
        "judged": [
            {"harm": row["harm"], "forgiven": row["forgiven"], **row["rules"]["nightschool"]}
            for row in rows
            if row["kind"] == "judged"
        ],
        "shadow": shadow(runs, given.seed),
        "cells": rows,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
        given.json.with_suffix(".part").unlink(missing_ok=True)
    print(json.dumps({key: value for key, value in result.items() if key != "cells"}, indent=1))


if __name__ == "__main__":
    main()
