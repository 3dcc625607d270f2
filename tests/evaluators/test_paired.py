"""The exact paired test: its level by counting every table, its sharpness, its bound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from evaluators.gate import non_inferiority_bounds
from evaluators.paired import MAX_ROWS, _chances, _least_won, loss_p_value, loss_upper

ROWS, MARGIN = 24, 0.1
CHAMPION = "lights@fedcba9876543210"


@pytest.fixture(scope="module")
def tables() -> list[tuple[int, int, float]]:
    """Every table of so many rows with its p-value."""
    return [
        (lost, won, loss_p_value(lost, won, ROWS, MARGIN))
        for lost in range(ROWS + 1)
        for won in range(ROWS - lost + 1)
    ]


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_no_loss_of_the_margin_or_more_is_missed_more_often_than_declared(
    tables: list[tuple[int, int, float]], level: float
) -> None:
    rejected = [(lost, won) for lost, won, p in tables if p <= level]
    assert rejected or level < 0.05
    for loss in (MARGIN, MARGIN + 0.02, 0.3):
        for won_chance in np.linspace(0, (1 - loss) / 2, 41):
            chances = [won_chance + loss, won_chance, max(0.0, 1 - 2 * won_chance - loss)]
            law = multinomial(ROWS, chances)
            wrong = sum(law.pmf([lost, won, ROWS - lost - won]) for lost, won in rejected)
            assert wrong <= level + 1e-9, (loss, won_chance)


def test_losing_fewer_and_winning_more_never_doubts_more(
    tables: list[tuple[int, int, float]],
) -> None:
    found = {(lost, won): p for lost, won, p in tables}
    for (lost, won), p in found.items():
        if lost:
            assert found[lost - 1, won] <= p + 1e-3
        if lost + won < ROWS:
            assert found[lost, won + 1] <= p + 1e-3


def test_it_is_sharper_than_what_ignores_gains_or_allows_peeking() -> None:
    even = [-1.0] * 30 + [1.0] * 38 + [0.0] * 232
    sharp, _, method = non_inferiority_bounds(even, 0.05, incumbent=CHAMPION, margin=0.05)
    before, _, _ = non_inferiority_bounds(even, 0.05, incumbent=CHAMPION)
    assert method == "exact paired score test"
    assert before < -0.05 < sharp


def test_the_bound_is_on_the_side_of_the_margin_that_the_test_says() -> None:
    for lost, won in ((0, 0), (3, 1), (9, 5), (20, 2)):
        rejected = loss_p_value(lost, won, 100, 0.05) <= 0.05
        assert (loss_upper(lost, won, 100, 0.05, 0.05) <= 0.05) == rejected
    assert loss_upper(0, 0, 69, 0.03, 0.05) == pytest.approx(1 - 0.03 ** (1 / 69), abs=5e-3)
    assert loss_upper(20, 2, 100, 0.05, 0.05) > 0.18


def test_the_chance_is_that_of_the_tables_counted_one_by_one() -> None:
    """Against scipy's binomials over every count, none left out, at the most rows it is used with."""
    rows, lost, won, margin = MAX_ROWS, 700, 520, 0.05
    least = _least_won(lost, won, rows, margin)
    x = np.arange(rows + 1)
    for chance in (0.0, 0.1, 0.1075, 0.3, 0.475):
        sure = binom.sf(least - 1, rows - x, chance / (1 - chance - margin))
        wanted = np.where(least <= rows, binom.pmf(x, rows, chance + margin) * sure, 0.0).sum()
        assert _chances(least, rows, margin, np.array([chance]))[0] == pytest.approx(
            wanted, rel=1e-9, abs=1e-15
        )


@pytest.mark.parametrize("table", [(-1, 0, 5), (3, 3, 5)])
def test_what_is_no_table_is_refused(table: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no table"):
        loss_p_value(*table, 0.05)
    with pytest.raises(ValueError, match="margin"):
        loss_p_value(1, 1, 5, 0.0)
    assert loss_p_value(0, 0, 0, 0.05) == 1
