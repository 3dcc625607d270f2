"""Has a task's traffic moved away from what it was? Measured and reported by Evidently.

Effect sizes on capped samples, not p-values: with enough rows every difference is significant, and
few are worth a night. What counts as large is calibrated on the rows themselves (``distances``), and
never below a declared least size.

Only descriptors that need no download are used. The HTML file carries about 4 MB of JavaScript.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.distances import Column, thresholds
from evaluators.localising import Finding, locate
from evaluators.topics import Embedder, embedded, topics
from evaluators.watched import CALLERS_WORDS, CATEGORIES, NUMBERS, TEXTS, Row

MAX_ROWS = 2000
MIN_ROWS = 20
MAX_TEXT_CHARACTERS = 4000
MAX_CATEGORIES = 30
LEAST_NAMED = 5
"""A value of fewer rows, or of what callers wrote of fewer sessions, is none of its own."""
_OTHERS = "(others)"
_TOPICS = {f"{name}_topic": name for name in TEXTS}


@dataclass(frozen=True)
class Sensitivity:
    """What is called drift."""

    level: float = 0.005
    """Chance that a comparison of stationary traffic finds any column drifted, at most."""
    least_shift: float = 0.1
    """Of numbers, in standard deviations of the reference."""
    least_mix: float = 0.1
    """Of categories, Jensen-Shannon distance."""
    max_rows: int = MAX_ROWS
    """Sampled from each side."""


@dataclass(frozen=True)
class DriftSummary:
    """What drifted. Scores are distances: 0 is alike."""

    columns: tuple[str, ...]
    drifted: tuple[str, ...]
    findings: tuple[Finding, ...]
    """One per drifted column, the farthest beyond its threshold first."""
    scores: dict[str, float]
    """Wasserstein distance in standard deviations of the reference (numbers), Jensen-Shannon
    distance (categories)."""
    thresholds: dict[str, float]
    reference_rows: int
    current_rows: int
    html: Path
    json: Path

    @property
    def share(self) -> float:
        """Drifted columns of all, 0 to 1."""
        return len(self.drifted) / len(self.columns)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "share": self.share,
            "html": self.html.name,
            "json": self.json.name,
        }


class TooFewRows(ValueError):
    """There is not enough to compare; the message says how much is needed."""


@dataclass(frozen=True)
class Windows:
    """Both windows as one table, the reference's rows first."""

    frame: Any
    """Pandas; a column per text, number, category and descriptor."""
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    in_reference: NDArray[np.bool_]
    sessions: tuple[str, ...]
    call_ids: tuple[str, ...]

    def columns(self, sensitivity: Sensitivity) -> dict[str, Column]:
        made = {
            name: Column("number", self.frame[name].to_numpy(dtype=float), sensitivity.least_shift)
            for name in self.numbers
        }
        for name in self.categories:
            made[name] = Column("category", _codes(self.frame[name]), sensitivity.least_mix)
        return made


def report(
    reference_rows: Iterable[Row],
    current_rows: Iterable[Row],
    out_dir: Path,
    *,
    sensitivity: Sensitivity | None = None,
    seed: int = 7,
) -> DriftSummary:
    """Compare two windows and write ``drift.html`` and ``drift.json`` into ``out_dir``.

    Args:
        reference_rows: the window before; mappings with any of the columns of ``watched``; others
            are ignored, and so is a column that fewer than MIN_ROWS rows of a side have.
        current_rows: the window now, likewise.
        out_dir: created when missing; files in it are replaced, each in one step.
        seed: of the samples and of the calibration.

    Raises:
        TooFewRows: fewer than MIN_ROWS rows on a side, or no column is filled on both.
    """
    sensitivity = sensitivity or Sensitivity()
    random = np.random.default_rng(seed)
    reference = _sample(reference_rows, sensitivity.max_rows, random)
    current = _sample(current_rows, sensitivity.max_rows, random)
    windows = windows_of(reference, current, random)
    columns = windows.columns(sensitivity)
    limits = thresholds(columns, windows.sessions, windows.in_reference, sensitivity.level, random)
    snapshot = _measured(windows, limits)
    payload = json.loads(snapshot.json())
    scores = _scores(payload)
    drifted = sorted(
        (name for name in limits if scores[name] >= limits[name]),
        key=lambda name: -scores[name] / limits[name],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    html, data = out_dir / "drift.html", out_dir / "drift.json"
    _replace(html, lambda place: snapshot.save_html(str(place)))
    summary = DriftSummary(
        columns=tuple(limits),
        drifted=tuple(drifted),
        findings=tuple(
            locate(
                name,
                columns[name].kind,
                windows.frame[name].to_list(),
                windows.in_reference,
                windows.call_ids,
                scores[name],
                limits[name],
            )
            for name in drifted
        ),
        scores={name: scores[name] for name in limits},
        thresholds=limits,
        reference_rows=len(reference),
        current_rows=len(current),
        html=html,
        json=data,
    )
    body = json.dumps({"summary": summary.to_dict(), "report": payload}, default=str)
    _replace(data, lambda place: place.write_text(body, encoding="utf-8"))
    return summary


def windows_of(
    reference: Sequence[Row],
    current: Sequence[Row],
    random: np.random.Generator,
    embedder: Embedder = embedded,
) -> Windows:
    """Rows as columns that can be compared, Evidently's text descriptors and topics among them.

    Raises TooFewRows.
    """
    if min(len(reference), len(current)) < MIN_ROWS:
        raise TooFewRows(
            f"{len(reference)} reference and {len(current)} current rows: a comparison takes at "
            f"least {MIN_ROWS} of each"
        )
    rows = [*reference, *current]
    texts, numbers, categories = (
        [name for name in names if enough(reference, name) and enough(current, name)]
        for names, enough in ((TEXTS, _said), (NUMBERS, _known), (CATEGORIES, _said))
    )
    if not texts + numbers + categories:
        wanted = ", ".join(TEXTS + NUMBERS + CATEGORIES)
        raise TooFewRows(f"no column is filled in {MIN_ROWS} rows of both sides: {wanted}")
    frame, described = _described(rows, texts)
    for name in numbers:
        frame[name] = [_number(row.get(name)) for row in rows]
    # Rows of no session stand for themselves.
    sessions = tuple(str(row.get("session") or f"row {n}") for n, row in enumerate(rows))
    made: dict[str, Sequence[str | None] | None] = {
        name: _coded(name, [row.get(name) for row in rows], sessions)
        if name in CALLERS_WORDS
        else _few([row.get(name) for row in rows])
        for name in categories
    }
    made |= {
        topic: topics([str(row.get(name) or "") for row in rows], random, embedder)
        for topic, name in _TOPICS.items()
        if name in texts
    }
    kept = {name: values for name, values in made.items() if values is not None}
    for name, values in kept.items():
        frame[name] = values
    return Windows(
        frame=frame,
        numbers=(*described, *numbers),
        categories=tuple(kept),
        in_reference=np.arange(len(rows)) < len(reference),
        sessions=sessions,
        call_ids=tuple(str(row.get("call_id") or "") for row in rows),
    )


def _described(rows: Sequence[Row], texts: Sequence[str]) -> tuple[Any, list[str]]:
    """A frame of the texts with Evidently's descriptors of them, and the descriptors' names."""
    import pandas as pd

    _quietly()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset
        from evidently.descriptors import NonLetterCharacterPercentage, TextLength, WordCount

        descriptors = [
            descriptor(name, alias=f"{name}_{suffix}")
            for name in texts
            for descriptor, suffix in (
                (TextLength, "length"),
                (WordCount, "words"),
                (NonLetterCharacterPercentage, "non_letters"),
            )
        ]
        frame = pd.DataFrame(
            {
                # Evidently divides by the length: a text without characters has none for it.
                name: [str(row.get(name) or "")[:MAX_TEXT_CHARACTERS] or None for row in rows]
                for name in texts
            },
            index=range(len(rows)),
        )
        if not texts:
            return frame, []
        data = Dataset.from_pandas(
            frame, data_definition=DataDefinition(text_columns=list(texts)), descriptors=descriptors
        )
        return data.as_dataframe(), [descriptor.alias for descriptor in descriptors]


def _measured(windows: Windows, limits: dict[str, float]) -> Any:
    """Evidently's snapshot of both windows, each column with its threshold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import RowCount
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(
            numerical_columns=list(windows.numbers), categorical_columns=list(windows.categories)
        )
        frame = windows.frame[[*windows.numbers, *windows.categories]]
        before, now = (
            Dataset.from_pandas(frame[side].reset_index(drop=True), data_definition=definition)
            for side in (windows.in_reference, ~windows.in_reference)
        )
        drift = DataDriftPreset(
            columns=list(limits),
            per_column_method={
                name: "jensenshannon" if name in windows.categories else "wasserstein"
                for name in limits
            },
            per_column_threshold=limits,
            # One column is enough: the thresholds are those of all columns together.
            drift_share=1 / len(limits),
        )
        # Evidently takes the current window first.
        return Report([RowCount(), drift]).run(now, before)


def _quietly() -> None:
    # Evidently reads this when it is imported.
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _few(values: Sequence[Any], sessions: Sequence[str] | None = None) -> list[str | None] | None:
    """Values of a category, rare ones as one; None where most are rare, so that it is no category.

    Args:
        sessions: of the rows, where it takes so many of them, and not of rows, to be no rare one.
    """
    counts = Counter(sorted(str(value) for value in values if value))
    enough = counts
    if sessions is not None:
        pairs = {(str(value), one) for value, one in zip(values, sessions, strict=True) if value}
        enough = Counter(value for value, _ in pairs)
    kept = {
        value for value, _ in counts.most_common(MAX_CATEGORIES) if enough[value] >= LEAST_NAMED
    }
    if sum(counts[value] for value in kept) < counts.total() / 2:
        return None
    return [
        None if not value else str(value) if str(value) in kept else _OTHERS for value in values
    ]


def _coded(name: str, values: Sequence[Any], sessions: Sequence[str]) -> list[str | None] | None:
    """Likewise of what callers wrote, by codes: ``label 01`` is the most frequent."""
    few = _few(values, sessions)
    if few is None:
        return None
    counts = Counter(sorted(value for value in few if value and value != _OTHERS))
    code = {value: f"{name} {n:02d}" for n, (value, _) in enumerate(counts.most_common(), 1)}
    return [None if value is None else code.get(value, _OTHERS) for value in few]


def _codes(values: Any) -> NDArray[np.float64]:
    """Codes of a category's column, NaN where a row has none."""
    names = sorted({value for value in values if isinstance(value, str)})
    place = {name: float(code) for code, name in enumerate(names)}
    return np.array([place.get(value, math.nan) for value in values], dtype=float)


def _scores(payload: dict[str, Any]) -> dict[str, float]:
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


def _known(rows: Sequence[Row], name: str) -> bool:
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
