"""Has a task's traffic moved away from what its champion was trained on? Reports by Evidently.

Effect sizes on capped samples, not p-values: with enough rows every difference is significant, and
few are worth a night. What counts as large is calibrated on the rows themselves: two random halves
of the pooled rows also differ, and drift must exceed that.

Only descriptors that need no download are used. The HTML file carries about 4 MB of JavaScript.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.distances import jensen_shannon, null_threshold, wasserstein
from infra.calls.record import CallRecord
from infra.prompting.template import content_text

Row = Mapping[str, Any]

MAX_ROWS = 2000
MIN_ROWS = 20
MAX_TEXT_CHARACTERS = 4000
MAX_CATEGORIES = 30
_TEXTS = ("prompt", "answer")
_NUMBERS = ("latency_seconds", "confidence")
_CATEGORIES = ("action",)


@dataclass(frozen=True)
class DriftSummary:
    """What drifted. Scores are distances: 0 is alike."""

    columns: tuple[str, ...]
    drifted: tuple[str, ...]
    share: float
    """len(drifted) / len(columns), 0 to 1."""
    scores: dict[str, float]
    """Wasserstein distance in standard deviations of the reference (numbers), Jensen-Shannon
    distance (categories)."""
    thresholds: dict[str, float]
    reference_rows: int
    current_rows: int
    html: Path
    json: Path

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "html": str(self.html), "json": str(self.json)}


class TooFewRows(ValueError):
    """There is not enough to compare; the message says how much is needed."""


def drift_row(call: CallRecord) -> dict[str, Any]:
    """What is watched of a call: last user message, answer, and action (tool names, or words).

    Latency and confidence are left out: they change with who answers, which is no drift of traffic.
    """
    answer = call.answer or {}
    asked = [message for message in call.messages if message.get("role") == "user"]
    tools = [
        str((item.get("function") or {}).get("name")) for item in answer.get("tool_calls") or []
    ]
    said = content_text(answer.get("content"))
    if tools:
        said = " ".join(
            str((item.get("function") or {}).get("arguments") or "")
            for item in answer["tool_calls"]
        )
    return {
        "prompt": content_text(asked[-1].get("content")) if asked else "",
        "answer": said,
        "action": "+".join(sorted(tools)) or "words",
    }


def report(
    reference_rows: Iterable[Row],
    current_rows: Iterable[Row],
    out_dir: Path,
    *,
    max_rows: int = MAX_ROWS,
    drift_share: float = 0.5,
    seed: int = 7,
) -> DriftSummary:
    """Compare two windows and write ``drift.html`` and ``drift.json`` into ``out_dir``.

    Args:
        reference_rows: the champion's training window; mappings with any of the columns ``prompt``,
            ``answer`` (texts), ``action`` (category), ``latency_seconds``, ``confidence`` (numbers);
            others are ignored. See ``drift_row``.
        current_rows: live traffic, likewise.
        out_dir: created when missing; files in it are replaced, each in one step.
        max_rows: rows sampled from each side.
        drift_share: share of drifted columns that the report marks as drift of the data set.
        seed: of the sample and of the calibration.

    Raises:
        TooFewRows: fewer than MIN_ROWS rows on a side, or no column is filled on both.
    """
    random = np.random.default_rng(seed)
    reference = _sample(reference_rows, max_rows, random)
    current = _sample(current_rows, max_rows, random)
    if min(len(reference), len(current)) < MIN_ROWS:
        raise TooFewRows(
            f"{len(reference)} reference and {len(current)} current rows: a comparison takes at "
            f"least {MIN_ROWS} of each"
        )
    snapshot, thresholds = _run(reference, current, drift_share, random)
    payload = json.loads(snapshot.json())
    scores = _scores(payload)
    drifted = tuple(name for name in thresholds if scores[name] >= thresholds[name])
    out_dir.mkdir(parents=True, exist_ok=True)
    html, data = out_dir / "drift.html", out_dir / "drift.json"
    _replace(html, lambda place: snapshot.save_html(str(place)))
    summary = DriftSummary(
        columns=tuple(thresholds),
        drifted=drifted,
        share=len(drifted) / len(thresholds),
        scores={name: scores[name] for name in thresholds},
        thresholds=thresholds,
        reference_rows=len(reference),
        current_rows=len(current),
        html=html,
        json=data,
    )
    body = json.dumps({"summary": summary.to_dict(), "report": payload}, default=str)
    _replace(data, lambda place: place.write_text(body, encoding="utf-8"))
    return summary


def _run(
    reference: Sequence[Row],
    current: Sequence[Row],
    drift_share: float,
    random: np.random.Generator,
) -> tuple[Any, dict[str, float]]:
    """Evidently's snapshot and the threshold of each column."""
    # Evidently reads this when it is imported.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.descriptors import NonLetterCharacterPercentage, TextLength, WordCount
        from evidently.metrics import RowCount
        from evidently.presets import DataDriftPreset

        texts, numbers, categories = (
            [name for name in names if enough(reference, name) and enough(current, name)]
            for names, enough in ((_TEXTS, _said), (_NUMBERS, _measured), (_CATEGORIES, _said))
        )
        if not texts + numbers + categories:
            wanted = ", ".join(_TEXTS + _NUMBERS + _CATEGORIES)
            raise TooFewRows(f"no column is filled in {MIN_ROWS} rows of both sides: {wanted}")
        definition = DataDefinition(
            text_columns=texts, numerical_columns=numbers, categorical_columns=categories
        )
        descriptors = [
            descriptor(name, alias=f"{name}_{suffix}")
            for name in texts
            for descriptor, suffix in (
                (TextLength, "length"),
                (WordCount, "words"),
                (NonLetterCharacterPercentage, "non_letters"),
            )
        ]
        frames = _frames(reference, current, texts, numbers, categories)
        data = [
            Dataset.from_pandas(frame, data_definition=definition, descriptors=descriptors)
            for frame in frames
        ]
        thresholds = _thresholds(
            *(dataset.as_dataframe() for dataset in data),
            numbers=[descriptor.alias for descriptor in descriptors] + numbers,
            categories=categories,
            random=random,
        )
        drift = DataDriftPreset(
            columns=list(thresholds),
            per_column_method={
                name: "jensenshannon" if name in categories else "wasserstein"
                for name in thresholds
            },
            per_column_threshold=thresholds,
            drift_share=drift_share,
        )
        # Evidently takes the current window first.
        return Report([RowCount(), drift]).run(data[1], data[0]), thresholds


def _frames(
    reference: Sequence[Row],
    current: Sequence[Row],
    texts: Sequence[str],
    numbers: Sequence[str],
    categories: Sequence[str],
) -> list[Any]:
    import pandas as pd

    kept = {
        name: {
            value
            for value, _ in Counter(
                sorted(str(row.get(name)) for row in (*reference, *current))
            ).most_common(MAX_CATEGORIES)
        }
        for name in categories
    }
    return [
        pd.DataFrame(
            {
                name: [str(row.get(name) or "")[:MAX_TEXT_CHARACTERS] for row in rows]
                for name in texts
            }
            | {name: [_number(row.get(name)) for row in rows] for name in numbers}
            | {
                name: [
                    value if value in kept[name] else "(others)"
                    for value in (str(row.get(name)) for row in rows)
                ]
                for name in categories
            }
        )
        for rows in (reference, current)
    ]


def _thresholds(
    reference: Any,
    current: Any,
    *,
    numbers: Sequence[str],
    categories: Sequence[str],
    random: np.random.Generator,
) -> dict[str, float]:
    limits = {}
    for name in numbers:
        first, second = (
            frame[name].dropna().to_numpy(dtype=float) for frame in (reference, current)
        )
        limits[name] = null_threshold(first, second, wasserstein, random)
    for name in categories:
        first, second = reference[name].to_numpy(dtype=str), current[name].to_numpy(dtype=str)
        _, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
        limits[name] = null_threshold(
            codes[: len(first)], codes[len(first) :], jensen_shannon, random
        )
    return limits


def _scores(payload: Mapping[str, Any]) -> dict[str, float]:
    scores = {}
    for metric in payload["metrics"]:
        config = metric.get("config") or {}
        if str(config.get("type", "")).endswith("ValueDrift"):
            scores[str(config["column"])] = float(metric["value"])
    return scores


def _sample(rows: Iterable[Row], most: int, random: np.random.Generator) -> list[Row]:
    """A uniform sample in one pass and constant memory (Vitter 1985, algorithm R)."""
    kept: list[Row] = []
    for place, row in enumerate(rows):
        if place < most:
            kept.append(row)
        elif (chosen := int(random.integers(place + 1))) < most:
            kept[chosen] = row
    return kept


def _said(rows: Sequence[Row], name: str) -> bool:
    return sum(bool(row.get(name)) for row in rows) >= MIN_ROWS


def _measured(rows: Sequence[Row], name: str) -> bool:
    return sum(not math.isnan(_number(row.get(name))) for row in rows) >= MIN_ROWS


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _replace(place: Path, write: Callable[[Path], object]) -> None:
    """Readers see the old file or the new one, never a half-written one."""
    half = place.with_name(f".{os.getpid()}-{place.name}")
    try:
        write(half)
        half.replace(place)
    finally:
        half.unlink(missing_ok=True)
