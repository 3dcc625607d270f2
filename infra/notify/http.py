"""What the channels over HTTP share."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_RETRY_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 3600.0


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, between 1 and an hour; 30 when it says nothing usable."""
    for name, value in headers.items():
        if name.lower() == "retry-after":
            try:
                return min(max(float(value), 1.0), MAX_RETRY_AFTER_SECONDS)
            except ValueError:
                break
    return DEFAULT_RETRY_SECONDS
