"""How alike two free texts are, beside their words: chrF and embedding similarity. Slower than token F1.

chrF (Popović 2015) as sacrebleu computes it: character n-grams up to six, recall counting twice. The
embedding is the one that prompts are assigned to tasks by (``infra/tasks/embedding.py``): it knows
spelling and words, not meaning.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from infra.tasks.embedding import embed

MAX_CHARACTERS = 20_000
"""Of either text; endless text must not take endless time."""


def text_stages(expected: str, got: str) -> dict[str, float]:
    """``chrf`` and ``embedding``, each 0 to 1; equal texts are 1, a missing one is 0."""
    if expected == got and expected.strip():
        return {"chrf": 1.0, "embedding": 1.0}
    right, said = expected[:MAX_CHARACTERS], got[:MAX_CHARACTERS]
    if not right.strip() or not said.strip():
        return {"chrf": 0.0, "embedding": 0.0}
    found = _chrf().sentence_score(said, [right]).score / 100
    first, second = embed([right, said])
    return {"chrf": _share(found), "embedding": _share(float(first @ second))}


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
