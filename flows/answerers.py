"""Everybody who is compared on the test set, each with a scorecard of the same rows. No Prefect here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluators.calibration import Threshold
from evaluators.replay import Outcome
from evaluators.risk_coverage import risk_coverage
from evaluators.scorecard import Scorecard, make_scorecard
from evaluators.scoring import CallScore, answer_kind
from evaluators.served import Served
from infra.calls.record import Checks
from infra.prompting.confidence import MEAN
from infra.settings.learning import Gate
from trainers.data_sets.versions import Example

Slices = Mapping[str, Mapping[str, str]]


def compared_cards(
    dataset_digest: str,
    test: Sequence[Example],
    slices: Slices,
    *,
    adapter: tuple[str, Sequence[Outcome]],
    served: Sequence[Served],
    incumbent: tuple[str, Sequence[Outcome]] | None,
    teacher: str,
) -> dict[str, Scorecard]:
    """Scorecards of what callers get, the incumbent adapter and the teacher.

    Args:
        adapter, incumbent: name and answers; None: the teacher is the incumbent.
        served: the adapter's answers where they are shown, see ``served.serve``.
        teacher: its name. It is right where its own answer is the label; its time was not taken.
    """
    name, rows = adapter
    right = teacher_rows(test)
    cards = {"teacher": make_scorecard(teacher, dataset_digest, right, slices=slices)}
    whole = [
        own if shown.accepted else other
        for own, shown, other in zip(rows, served, right, strict=True)
    ]
    cards["served"] = make_scorecard(f"{name} and {teacher}", dataset_digest, whole, slices=slices)
    # Half of it is the teacher's, which was not asked again: neither its time nor its tokens are known.
    for key in ("teacher", "served"):
        cards[key] = replace(cards[key], latency_seconds={}, tokens={})
    if incumbent is not None:
        champion, said = incumbent
        cards["incumbent"] = make_scorecard(champion, dataset_digest, said, slices=slices)
    return cards


def teacher_rows(test: Sequence[Example]) -> list[Outcome]:
    """The teacher on its own labels: wrong only where feedback corrected it."""
    found = []
    for example in test:
        right = float(example.source != "correction")
        score = CallScore(answer_kind(example.answer, example.request), right, {})
        found.append(Outcome(example.call_id, example.session, None, Checks(), None, score, 0.0))
    return found


def curves_of(rows: Sequence[Outcome], threshold: Threshold, gate: Gate) -> dict[str, Any]:
    """The risk-coverage curve of the test rows, as JSON: by the score in use, and by the mean beside it.

    Args:
        rows: the adapter's answers on the test split.
    """
    names = list(dict.fromkeys((threshold.score, MEAN)))
    right = [row.correct for row in rows]
    curves = {
        name: risk_coverage(
            [row.by(name).confidence if row.showable else None for row in rows], right
        )
        for name in names
    }
    shown = [
        row.correct
        for row in rows
        if row.showable and threshold.accepts(row.by(threshold.score).confidence)
    ]
    at = [len(shown) / len(rows), 1 - sum(shown) / len(shown)] if shown else None
    return {
        "curves": {name: [list(point) for point in points] for name, points in curves.items()},
        "served": at,
        "risk": gate.risk,
        "needed": gate.min_coverage,
    }
