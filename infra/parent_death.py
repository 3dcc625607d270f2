"""A process that does not outlive the one that started it, however that ends."""

from __future__ import annotations

import ctypes

_PR_SET_PDEATHSIG = 1
# Looked for here: between fork and exec is no place for it.
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def end_with_parent(number: int) -> None:
    """Linux: this process gets that signal when the thread that started it ends. Elsewhere there is no
    such call; do without."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number)
