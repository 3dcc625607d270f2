"""Does the engine say what the trainer's own model says? The same weights must, up to arithmetic.

The trainer wrote down how its kept weights begin their greedy answers to some validation prompts
(``trainers.backends.probing``); the judge asks the engine the very same. Another template, tokenizer,
scale of the adapter, or an adapter that is not applied at all shows here before any score does. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

MAX_OTHER_SHARE = 0.1
"""Rows that may begin otherwise: places where two tokens are nearly as likely are left out already."""


class Said(NamedTuple):
    """The engine's answer to one prompt."""

    text: str
    log_probabilities: Sequence[float]
    complete: bool = True
    """Not cut off at a token limit."""


@dataclass(frozen=True)
class EngineMatch:
    """How far engine and trainer are apart."""

    rows: int
    tokens: int
    """Log-probabilities compared."""
    difference: float
    """Mean absolute difference of a token's log-probability, nats."""
    other: int
    """Rows whose text begins otherwise."""
    tolerance: float
    """Of ``difference``."""

    @property
    def compared(self) -> bool:
        return self.tokens > 0

    @property
    def agrees(self) -> bool:
        return (
            self.compared
            and self.difference <= self.tolerance
            and self.other <= MAX_OTHER_SHARE * self.rows
        )

    @property
    def said(self) -> str:
        if not self.compared:
            return (
                "the engine could not be compared with the trainer's own model: of the prompts that "
                f"the trainer noted it answered {self.rows}, and told no log-probabilities"
            )
        return (
            f"the engine says other than the trainer's own model: {self.other} of {self.rows} "
            f"validation answers begin otherwise, a token's log-probability is {self.difference:.3f} "
            f"apart, tolerated is {self.tolerance:.3f}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EngineMatch:
        return cls(**value)


def compare_with_trainer(
    probes: Sequence[Mapping[str, Any]], said: Mapping[str, Said], tolerance: float
) -> EngineMatch | None:
    """Lay the engine's answers beside the trainer's; None where the trainer noted none.

    Args:
        probes: ``Probe`` as JSON.
        said: the engine's answers by ``prompt_key``. One it cut short is compared as far as it goes.
        tolerance: nats.
    """
    apart: list[float] = []
    rows = other = 0
    for probe in probes:
        answer = said.get(str(probe["prompt"]))
        if answer is None:
            continue
        rows += 1
        expected = str(probe["text"]).rstrip("\ufffd")
        if not answer.complete:
            expected = expected[: len(answer.text)]
        other += not answer.text.startswith(expected)
        apart += [
            abs(one - two)
            for one, two in zip(probe["log_probabilities"], answer.log_probabilities, strict=False)
        ]
    if not probes:
        return None
    difference = sum(apart) / len(apart) if apart else 0.0
    return EngineMatch(rows, len(apart), difference, other, tolerance)
