"""Which prompts nearly repeat others: what is kept for judging must not be trained on in another wording."""

from __future__ import annotations

from collections.abc import Sequence

from infra.tasks.signature import signature
from trainers.data_sets.labels import Example, prompt_key
from trainers.ingest.duplicates import exchange, repeated


def repeating(examples: Sequence[Example], of: Sequence[Example], similarity: float) -> set[str]:
    """Ids of the examples that ask the same as one of the others, exactly or nearly, whatever the answer.

    Args:
        of: what must not be repeated.
        similarity: least Jaccard similarity (0 to 1] of word 3-shingles, as MinHash estimates it.
    """
    # Copies are compared within one structure: a prompt may be the same though `functions` differ.
    exact = {prompt_key(example.request) for example in of}
    found = {e.call_id for e in examples if prompt_key(e.request) in exact}
    asked = [exchange(e.request, None, signature(e.request).digest) for e in examples]
    kept = [exchange(e.request, None, signature(e.request).digest) for e in of]
    near = repeated(asked, kept, similarity)
    return found | {e.call_id for e, repeats in zip(examples, near, strict=True) if repeats}
