"""What a spec takes from the data where the settings leave it open. Pure."""

from __future__ import annotations

from collections.abc import Sequence

MAX_SEQUENCE_TOKENS = 8192
_ROUND_TO = 64
_OUTLIER = 1.5


def longest_sequence(lengths: Sequence[int], context: int | None) -> int:
    """Tokens of the longest sequence to train on, a multiple of 64.

    That of the longest example, unless it is more than half as long again as the 99th percentile: a
    few outliers decide how much memory a run needs and teach little. Never beyond the base model's
    context, nor beyond 8192.

    Args:
        lengths: tokens of each example, at least one.
        context: the base model's context in tokens; None when it does not say.
    """
    ordered = sorted(lengths)
    percentile = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    wanted = ordered[-1] if ordered[-1] <= _OUTLIER * percentile else percentile
    rounded = -(-wanted // _ROUND_TO) * _ROUND_TO
    return max(16, min(rounded, context or MAX_SEQUENCE_TOKENS, MAX_SEQUENCE_TOKENS))


def batch_size(examples: int) -> int:
    """Examples per optimizer step: 8 below 500 of them, 16 below 5,000, then 32.

    Few examples need many steps more than smooth ones.
    """
    return 8 if examples < 500 else 16 if examples < 5000 else 32
