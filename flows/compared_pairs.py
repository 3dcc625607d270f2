"""Test rows as the further metrics compare them: what the caller would get, and what it gets today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from evaluators.further import MetricRow
from evaluators.replay import Outcome
from infra.prompting.values import same_answer
from trainers.data_sets.versions import Example

Message = Mapping[str, Any]


class Pair(NamedTuple):
    """One test row: what the caller would get, and what it gets today."""

    example: Example
    own: Outcome
    candidate: Message
    incumbent: Message

    @property
    def same(self) -> bool:
        return same_answer(self.candidate, self.incumbent)

    def row(self, difference: float, failure: str | None = None) -> MetricRow:
        if failure is not None:
            difference = -1.0
        return MetricRow(self.example.call_id, self.example.session, difference, failure)
