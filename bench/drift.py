"""How often is stationary traffic called drift, and how soon is a drift found? Beside Evidently's preset.

A champion's training window, then days of calls; each day the newest calls are compared as ``watch``
does: with the training window and with the seven days before. Stationary traffic is real because its
texts are (``bench/support/drifting.py``), and stationary because its sessions are shuffled. The level
is tuned on one part of the traffic (the largest of LEVELS with at most one false alarm in 100 days) and
measured on another. Beside it Evidently's ``DataDriftPreset`` with its own tests, thresholds and share
on the same columns: a day is drift when half of the columns are (its default), or any. (Its classifier
of whole texts is left out: it takes 16 processor seconds a look.)

    python bench/drift.py [--quick] [--json FILE] [--champions 4] [--days 15] [--runs 3] [--seed 11]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from bench.support.drifting import Session, chat_is_there, drifts, names, planted, stationary, take
from evaluators import topics
from evaluators.distances import dealt, distances, limits
from evaluators.drift import Sensitivity, Windows, windows_of

TRAINING, DAY, BEFORE_DAYS = 1000, 150, 7
LEVELS = (0.02, 0.01, 0.005, 0.002)
TUNED_TO = 1.0
"""False alarms in 100 days at most, on the part that is tuned on."""
PRESET_EVERY = 3
"""Stationary days: the preset takes as long as three of our looks."""
LONGEST_DAYS = 10
"""A drift that was not found by then counts as so many days."""
WATCHED = Sensitivity()
RULES = ("ours", "half of the columns", "any column")

Rows = Sequence[dict[str, Any]]
_vectors: dict[str, NDArray[np.float32]] = {}


def remembered(texts: Iterable[str]) -> NDArray[np.float32]:
    """The product's embeddings, each text's once: a text is in many windows here."""
    rows = []
    for text in texts:
        if text not in _vectors:
            _vectors[text] = topics.embedded([text])[0]
        rows.append(_vectors[text])
    return np.stack(rows)


def found_at(reference: Rows, current: Rows, seed: int) -> dict[float, tuple[str, ...]]:
    """Drifted columns at each level of LEVELS; per comparison half of it."""
    random = np.random.default_rng(seed)
    windows = windows_of(reference, current, random, remembered)
    columns = windows.columns(WATCHED)
    scores = distances(columns, windows.in_reference)
    drawn = dealt(columns, windows.sessions, windows.in_reference, random)
    found = {}
    for level in LEVELS:
        reached = limits(drawn, columns, level / 2)
        found[level] = tuple(name for name in scores if scores[name] >= reached[name])
    return found


class Watch:
    """One champion and its days."""

    def __init__(self, source: Iterator[Session], seed: int) -> None:
        self._seed = seed
        self._training = take(source, TRAINING)
        self._days: list[Rows] = []

    def day(self, source: Iterator[Session], peer: bool) -> dict[str, Any]:
        """What a day's look says at each level, and the preset where it is asked."""
        now = take(source, DAY)
        self._seed += 1
        looks = [found_at(self._training, now, self._seed)]
        if self._days:
            before = [row for day in self._days[-BEFORE_DAYS:] for row in day]
            looks.append(found_at(before, now, self._seed))
        self._days.append(now)
        said: dict[str, Any] = {
            "ours": {level: sorted({n for look in looks for n in look[level]}) for level in LEVELS}
        }
        if peer:
            random = np.random.default_rng(self._seed)
            windows = windows_of(self._training, now, random, remembered)
            said["preset"] = preset_share(windows)
        return said


def preset_share(windows: Windows) -> float:
    """Share of columns that Evidently's preset finds drifted by its own tests and thresholds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(
            numerical_columns=list(windows.numbers), categorical_columns=list(windows.categories)
        )
        frame = windows.frame[[*windows.numbers, *windows.categories]]
        sides = [
            Dataset.from_pandas(frame[side].reset_index(drop=True), data_definition=definition)
            for side in (~windows.in_reference, windows.in_reference)
        ]
        said = json.loads(Report([DataDriftPreset()]).run(*sides).json())
    count = next(m for m in said["metrics"] if "DriftedColumnsCount" in m["metric_name"])
    return float(count["value"]["share"])


def alarms(part: str, champions: int, days: int, seed: int, peer: bool) -> dict[str, Any]:
    """Every stream's stationary days."""
    result: dict[str, Any] = {}
    for name in names():
        rows = []
        for champion in range(champions):
            source = stationary(name, part, seed + 100 * champion)
            watch = Watch(source, seed + 1000 * champion)
            rows += [watch.day(source, peer and not n % PRESET_EVERY) for n in range(days)]
        result[name] = {
            "days": len(rows),
            "alarms": {str(level): sum(bool(r["ours"][level]) for r in rows) for level in LEVELS},
            "columns": sorted({n for r in rows for n in r["ours"][max(LEVELS)]}),
        }
        if peer:
            shares = [row["preset"] for row in rows if "preset" in row]
            result[name]["preset"] = {
                "days": len(shares),
                "half of the columns": sum(share >= 0.5 for share in shares),
                "any column": sum(share > 0 for share in shares),
            }
        print(f"{part} {name}: {json.dumps(result[name])}", flush=True)
    return result


def per_hundred(found: dict[str, Any], level: float) -> float:
    days = sum(part["days"] for part in found.values())
    return 100 * sum(part["alarms"][str(level)] for part in found.values()) / days


def tuned_level(found: dict[str, Any]) -> float:
    good = [level for level in LEVELS if per_hundred(found, level) <= TUNED_TO]
    return max(good) if good else min(LEVELS)


def delays(name: str, drift: str, runs: int, level: float, seed: int) -> dict[str, Any]:
    """Days until a drift is found: 1 is the look at the end of its first day."""
    waited: dict[str, list[int]] = {rule: [] for rule in RULES}
    columns: dict[str, int] = {}
    for run in range(runs):
        stream = planted(name, drift, seed + 31 * run)
        watch = Watch(stream.before, seed + 7 * run)
        first = dict.fromkeys(RULES, 0)
        for _ in range(2):
            watch.day(stream.before, peer=False)  # so that there are days before
        for day in range(1, LONGEST_DAYS + 1):
            said = watch.day(stream.after, peer=True)
            named = said["ours"][level]
            told = {
                "ours": bool(named),
                "half of the columns": said["preset"] >= 0.5,
                "any column": said["preset"] > 0,
            }
            if named and not first["ours"]:
                for column in named:
                    columns[column] = columns.get(column, 0) + 1
            first = {rule: first[rule] or (day if told[rule] else 0) for rule in RULES}
            if all(first.values()):
                break
        for rule in RULES:
            waited[rule].append(first[rule] or LONGEST_DAYS)
    result = {
        rule: {"median": statistics.median(days), "worst": max(days)}
        for rule, days in waited.items()
    }
    found = {"found by": dict(sorted(columns.items(), key=lambda item: -item[1])[:4]), **result}
    print(f"{name}, {drift}: {json.dumps(found)}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 days a stream, one run a drift")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--champions", type=int, default=4)
    parser.add_argument("--days", type=int, default=15)
    parser.add_argument("--runs", type=int, default=3, help="of each drift")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    champions, days, runs = options.champions, options.days, options.runs
    if options.quick:
        champions, days, runs = 1, 3, 1
    if not chat_is_there():
        print(
            "the stream chat is left out: bench/make-peers.sh brings its conversations", flush=True
        )
    began = time.monotonic()
    tuned = alarms("tuned", max(1, champions // 2), days, options.seed, False)
    level = tuned_level(tuned)
    measured = alarms("measured", champions, days, options.seed + 50_000, True)
    presets = [part["preset"] for part in measured.values()]
    total = sum(preset["days"] for preset in presets)
    result = {
        "calls": {"training": TRAINING, "day": DAY, "days before": BEFORE_DAYS},
        "level of a look": level,
        "tuned on": {"days": sum(p["days"] for p in tuned.values()), "streams": tuned},
        "false alarms in 100 days": {
            "ours": per_hundred(measured, level),
            **{rule: 100 * sum(p[rule] for p in presets) / total for rule in RULES[1:]},
        },
        "stationary": measured,
        "delay in days": {
            f"{name}, {drift}": delays(name, drift, runs, level, options.seed)
            for name, drift in drifts()
        },
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
