"""A process that does not outlive the one that started it, however that ends."""

from __future__ import annotations

import ctypes

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int) -> None:
    """Linux: this process gets that signal when its parent dies. Elsewhere there is no such call; do
    without."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    except (AttributeError, OSError):
        return
