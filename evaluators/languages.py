"""In which language is a text? By py3langid, which carries its model and asks nobody."""

from __future__ import annotations

from functools import lru_cache

from infra.tasks.masking import mask

LEAST_CHARACTERS = 12
"""Below this a guess is a coin's throw."""
SHORT = "short"
MAX_WORDS = 60


@lru_cache(maxsize=8192)
def language_of(text: str) -> str:
    """An ISO 639 code, or ``short`` for a text that holds too little to tell. Never raises.

    Placeholders, numbers and addresses are left out first: they are of no language. Short texts are
    often guessed wrong; the same share of them in every window, so it is no drift.
    """
    words = mask(text[:4000], MAX_WORDS)
    if len(words) < LEAST_CHARACTERS:
        return SHORT
    import py3langid

    return str(py3langid.classify(words)[0])
