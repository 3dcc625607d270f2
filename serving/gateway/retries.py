"""How often a failed request may be sent again, over all calls: so that retries never become the load.

A budget as in Finagle and gRPC: every call pays a fraction of a retry in, every retry takes a whole
one out. With the upstream down for everybody, the retries stay a small share of the calls.
"""

from __future__ import annotations

import random

RETRIED_STATUSES = frozenset({502, 503, 504})
"""Answers of a server that in most cases did not work on the request."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class RetryBudget:
    """For one event loop: there is no lock.

    Args:
        share: retries per call in the long run, 0 to 1.
        burst: retries that may be saved up, which is also what there is at the start.
    """

    def __init__(self, share: float, burst: float = 10.0) -> None:
        self._share = share
        self._burst = burst
        self._held = burst if share > 0 else 0.0

    def called(self) -> None:
        """A call was made for the first time."""
        self._held = min(self._burst, self._held + self._share)

    def take(self) -> bool:
        """Whether one more retry may be made; it is paid for when it may."""
        if self._held < 1.0:
            return False
        self._held -= 1.0
        return True


def pause_seconds(attempt: int) -> float:
    """Before attempt 1, 2, ...: doubling, with full jitter, so that callers do not come in step."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**attempt)
    return random.uniform(0, longest)
