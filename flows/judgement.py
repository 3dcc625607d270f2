"""What came of judging an adapter, as it is kept. No Prefect here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluators.engine_match import EngineMatch
from flows.wiring import Context
from infra.database.events import record_event
from infra.prompting.confidence import MEAN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """How an adapter was judged. Scores are mean correctness on the test split, 0 to 1."""

    adapter: str
    task_id: str
    dataset_digest: str
    threshold: float | None
    coverage: float
    base_score: float
    adapter_score: float
    teacher_score: float
    served_score: float
    verdict: str
    reasons: tuple[str, ...]
    scorecards: Mapping[str, Any]
    gate: Mapping[str, Any]
    report: str
    """Key of this judgement in the object store."""
    confidence: str = MEAN
    """Which score the threshold is for."""
    risk_coverage: Mapping[str, Any] = field(default_factory=dict)
    """See ``answerers.curves_of``."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Of a thousand calls, by answerer."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Judgement:
        value = json.loads(data)
        return cls(**{**value, "reasons": tuple(value["reasons"])})


def tell_mismatch(context: Context, judgement: Judgement) -> None:
    """An event before the judgement is kept: a process that dies between tells it twice, not never."""
    found = judgement.gate["evidence"].get("match")
    if not found:
        return
    match = EngineMatch.from_dict(found)
    if match.agrees or not match.compared:
        return
    logger.error("%s: %s", judgement.adapter, match.said)
    with context.database.begin() as connection:
        record_event(
            connection,
            actor="judge",
            what="engine.mismatch",
            subject=judgement.adapter,
            why=match.said,
            evidence=match.to_dict(),
        )
