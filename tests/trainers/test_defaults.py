"""What a spec takes from the data where nobody said."""

from __future__ import annotations

import pytest

from trainers.defaults import batch_size, longest_sequence
from trainers.encoding import mixed_order, plan_batches


@pytest.mark.parametrize(
    ("lengths", "context", "expected"),
    [
        ([100], None, 128),
        ([100] * 99 + [140], None, 192),
        ([100] * 999 + [5000], None, 128),
        ([3000] * 10, 2048, 2048),
        ([20_000] * 10, None, 8192),
    ],
)
def test_the_longest_sequence_covers_all_but_outliers(
    lengths: list[int], context: int | None, expected: int
) -> None:
    assert longest_sequence(lengths, context) == expected


def test_batches_grow_with_the_data() -> None:
    assert [batch_size(count) for count in (60, 499, 500, 5000)] == [8, 8, 16, 32]


def test_old_examples_come_in_their_share_and_all_of_them() -> None:
    order = mixed_order(50, 20, 0.3, 1)
    drawn = [next(order) for _ in range(2000)]
    old = [index for index in drawn if index >= 50]
    assert 0.25 < len(old) / len(drawn) < 0.35
    assert set(drawn) == set(range(70))
    lengths = [5] * 70
    plan = plan_batches(lengths, 10, 200, 1, old=20, old_share=0.3)
    assert len(plan) == 2000
    assert 500 < sum(index >= 50 for index in plan) < 700
