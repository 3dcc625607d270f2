"""Where the calls of a Parquet file lie in it: a task's together, in row groups of their own.

The task that a call will have is discovery's to say, and may change by the night. What is known of it at
once decides here, and no more hangs on it than what a reader has to decode: the tag, else the signature,
each tenant's apart; within it the masked prompt, by whose words discovery tells tasks of one structure apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.calls.record import CallRecord
from trainers.ingest.features import Features

MIN_ROWS, MAX_ROWS = 100, 500
"""Of a row group; fewer are not worth one, so the rows of several small tasks share it."""


def partitions(
    records: Sequence[CallRecord], found: Sequence[Features]
) -> tuple[list[int], list[int]]:
    """The order in which to write the rows (indices), and how many each row group holds. Pure."""
    keys = [
        (record.tenant, record.task_tag or feature.signature)
        for record, feature in zip(records, found, strict=True)
    ]
    order = sorted(range(len(keys)), key=lambda index: (keys[index], found[index].prompt))
    sizes: list[int] = []
    begin = 0
    for place in range(1, len(order) + 1):
        size = place - begin
        ends = place == len(order) or keys[order[place]] != keys[order[place - 1]]
        if size >= MAX_ROWS or (ends and (size >= MIN_ROWS or place == len(order))):
            sizes.append(size)
            begin = place
    return order, sizes
