"""How strictly a try at the gate is judged, so that many tries let no bad adapter through.

Night after night a new adapter of a task is put to the gate against the same incumbent. Were each judged
at the full level, thirty nights of adapters that are all worse would let one through far more often than
the level says. So the level is spent: try k gets ``level * 6 / (pi * k)^2``, and as these add up to the
level over all k, the chance that any bad adapter ever passes is at most the level, whatever the tries
have in common (union bound), the rows of the test set among it.

A new incumbent begins a new count: what was to be shown then, that an adapter is as good as the old one,
is no longer the question. The price is rows: at level 0.05 and margin 0.05 the first try passes without a
lost row on 69 rows (59 at the full level), the seventh on 144, the thirtieth on 201.
"""

from __future__ import annotations

import math


def level_of_try(level: float, number: int) -> float:
    """The level at which try ``number`` (1 for the first against this incumbent) is judged.

    Raises ValueError when there is no such try.
    """
    if number < 1:
        raise ValueError(f"tries count from 1, not {number}")
    return level * 6 / (math.pi * number) ** 2
