"""Which prompts nearly repeat others: what is kept for judging must not be trained on in another wording."""

from __future__ import annotations

from collections.abc import Sequence

from infra.tasks.signature import signature
from trainers.data_sets.labels import Example, prompt_key
from trainers.ingest.duplicates import exchange, group


def repeating(examples: Sequence[Example], of: Sequence[Example], similarity: float) -> set[str]:
    """Ids of the examples that ask the same as one of the others, exactly or nearly, whatever the answer.

    Args:
        of: what must not be repeated.
        similarity: least Jaccard similarity (0 to 1] of word 3-shingles, as MinHash estimates it.
    """
    exact = {prompt_key(example.request) for example in of}
    found = {e.call_id for e in examples if prompt_key(e.request) in exact}
    asked = [exchange(e.request, None, signature(e.request).digest) for e in examples]
    kept = [exchange(e.request, None, signature(e.request).digest) for e in of]
    while kept:
        leaders = group([*kept, *asked], similarity)
        found |= {
            example.call_id
            for example, leader in zip(examples, leaders[len(kept) :], strict=True)
            if leader < len(kept)
        }
        # One that nearly repeats another of them led no group: what is like it is found by itself.
        kept = [item for index, item in enumerate(kept) if leaders[index] != index]
    return found
