"""How well tasks match known labels: for the demo and for tests, where the labels are known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping


def purity(assignments: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, float]:
    """Task id to the share of its labelled calls that have its commonest label, 0 to 1.

    Args:
        assignments: call id to task id.
        labels: call id to the true kind; calls without one do not count.
    """
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for call_id, task in assignments.items():
        if call_id in labels:
            found[task][labels[call_id]] += 1
    return {task: max(counts.values()) / counts.total() for task, counts in found.items()}
