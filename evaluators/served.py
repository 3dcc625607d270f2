"""The answer the caller would get: the small model's where it is accepted, the teacher's elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluators.replay import Outcome


@dataclass(frozen=True)
class Served:
    """One example as the cascade would have served it."""

    example_id: str
    session: str
    accepted: bool
    """Whether the small model's own answer is shown."""
    correct: float
    """0 to 1, of the answer that the caller gets."""
    error: bool = False
    """The engine gave the small model's answer up; the teacher answered."""


@dataclass(frozen=True)
class GateRow:
    """One test example with everything the gate compares on it. Scores are 0 to 1."""

    example_id: str
    session: str
    accepted: bool
    adapter: float
    """The adapter's own answer, shown or not."""
    served: float
    """The candidate system: the adapter where accepted, else the teacher."""
    incumbent: float
    """What the caller gets today."""
    base: float | None = None
    """The base model's own answer; None where it was not asked or its engine failed."""
    error: bool = False
    slices: Mapping[str, str] = field(default_factory=dict)
    """Which parts of the traffic it belongs to, by dimension; see ``guards.slices_of``."""

    def to_dict(self) -> dict[str, Any]:
        value = asdict(self)
        if not self.slices:
            # As it was before there were slices: what was stored then keeps its digest.
            del value["slices"]
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GateRow:
        return cls(**value)


def serve(
    outcomes: Sequence[Outcome], threshold: float | None, teacher: Sequence[Outcome] | None = None
) -> list[Served]:
    """Put the cascade's rule on replayed answers.

    Args:
        outcomes: the small model's.
        threshold: least confidence to show; None shows whatever passes its checks, as serving does.
            When calibration certified nothing pass ``math.inf``: then nothing is shown.
        teacher: the teacher's on the same examples; without them it scores 1, because the labels
            are its own answers.

    Raises:
        ValueError: the teacher was not asked one of the examples.
    """
    scores = None if teacher is None else {row.example_id: row.correct for row in teacher}
    rows = []
    for outcome in outcomes:
        if scores is not None and outcome.example_id not in scores:
            raise ValueError(f"no teacher score for example {outcome.example_id}")
        accepted = outcome.showable and (
            threshold is None
            or (outcome.confidence is not None and outcome.confidence >= threshold)
        )
        fallback = 1.0 if scores is None else scores[outcome.example_id]
        rows.append(
            Served(
                outcome.example_id,
                outcome.session,
                accepted,
                outcome.correct if accepted else fallback,
                outcome.error is not None,
            )
        )
    return rows


def gate_rows(
    candidate: Sequence[Outcome],
    threshold: float | None,
    *,
    teacher: Sequence[Outcome] | None = None,
    champion: Sequence[Served] | None = None,
    base: Sequence[Outcome] | None = None,
    slices: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[GateRow, ...]:
    """Line up candidate, incumbent and base on the same examples.

    Args:
        candidate: the adapter's replayed answers on the test split.
        threshold: see ``serve``.
        teacher: the teacher's replayed answers; None: it scores 1 on its own labels.
        champion: the incumbent adapter as served; None: the teacher is the incumbent.
        base: the base model's answers on some of the examples.
        slices: which slices each example belongs to, by its id.

    Raises:
        ValueError: an example is missing from the incumbent's answers.
    """
    served = serve(candidate, threshold, teacher)
    own = {row.example_id: row.correct for row in candidate}
    if champion is not None:
        incumbent = {row.example_id: row.correct for row in champion}
    elif teacher is not None:
        incumbent = {row.example_id: row.correct for row in teacher}
    else:
        incumbent = dict.fromkeys(own, 1.0)
    missing = [name for name in own if name not in incumbent]
    if missing:
        raise ValueError(
            f"the incumbent has no answer to {len(missing)} of {len(own)} examples, for instance "
            f"{missing[0]}: replay both on the same rows"
        )
    bases = {row.example_id: row.correct for row in base or () if row.error is None}
    return tuple(
        GateRow(
            row.example_id,
            row.session,
            row.accepted,
            own[row.example_id],
            row.correct,
            incumbent[row.example_id],
            bases.get(row.example_id),
            row.error,
            (slices or {}).get(row.example_id, {}),
        )
        for row in served
    )
