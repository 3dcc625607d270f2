"""Distances between two windows of calls, and how large they get when nothing has changed.

The distances are those that the report measures. What counts as large is calibrated on the rows
themselves: sessions are dealt anew to the two windows many times, which changes nothing in stationary
traffic, and every column is looked at in the same deals. So few rows, long sessions, many columns and
columns that say the same are all accounted for together (the maximum over the columns, Westfall and
Young, "Resampling-Based Multiple Testing", 1993).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DEALS = 1000
_AT_ONCE = 250
"""Deals held in memory together: 250 x 4,000 rows x 8 bytes are 8 MB a column."""
USUAL, RARE = 0.5, 0.99
"""Quantiles of a column's distances over the deals: its origin and its unit in the maximum."""
LEAST_UNIT = 0.1
"""Of the least distance: a column that hardly moves in the deals is not to be measured in nothing."""

Kind = Literal["number", "category"]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One column of both windows, the reference's rows first."""

    kind: Kind
    values: Numbers
    """Numbers, NaN where a row has none; of a category the code, 0, 1, ..., NaN likewise."""
    least: float
    """Distances below this are never drift, however many rows show them."""


def distances(columns: Mapping[str, Column], in_reference: NDArray[np.bool_]) -> dict[str, float]:
    """Of each column; the windows as they are."""
    deal = in_reference[np.newaxis].astype(np.float64)
    return {name: float(_distances(column, deal)[0]) for name, column in columns.items()}


def thresholds(
    columns: Mapping[str, Column],
    sessions: Sequence[str],
    in_reference: NDArray[np.bool_],
    level: float,
    random: np.random.Generator,
    deals: int = DEALS,
) -> dict[str, float]:
    """The distance of each column from which it is drift.

    In stationary traffic the chance that *any* column reaches its own is at most ``level``.

    Args:
        sessions: of each row; a session is dealt whole. One in both windows counts as two.
        in_reference: of each row.
    """
    return limits(dealt(columns, sessions, in_reference, random, deals), columns, level)


def dealt(
    columns: Mapping[str, Column],
    sessions: Sequence[str],
    in_reference: NDArray[np.bool_],
    random: np.random.Generator,
    deals: int = DEALS,
) -> dict[str, Numbers]:
    """Of each column its distance in every deal; the first deal is the windows as they are."""
    _, unit = np.unique(
        [f"{int(ref)} {name}" for ref, name in zip(in_reference, sessions, strict=True)],
        return_inverse=True,
    )
    units = int(unit.max()) + 1
    kept = len(np.unique(unit[in_reference]))
    found: dict[str, list[Numbers]] = {name: [] for name in columns}
    for start in range(0, deals, _AT_ONCE):
        count = min(_AT_ONCE, deals - start)
        order = np.argsort(random.random((count, units)), axis=1)
        drawn = np.zeros((count, units))
        np.put_along_axis(drawn, order[:, :kept], 1.0, axis=1)
        if start == 0:
            # The windows as they are, are one of the deals: that makes the level exact.
            drawn[0] = 0.0
            drawn[0, np.unique(unit[in_reference])] = 1.0
        deal = drawn[:, unit]
        for name, column in columns.items():
            found[name].append(_distances(column, deal))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def limits(
    found: Mapping[str, Numbers], columns: Mapping[str, Column], level: float
) -> dict[str, float]:
    """``thresholds`` from what ``dealt`` found."""
    if not found:
        return {}
    usual = {name: float(np.quantile(values, USUAL)) for name, values in found.items()}
    unit = {
        name: max(float(np.quantile(values, RARE)) - usual[name], LEAST_UNIT * columns[name].least)
        for name, values in found.items()
    }
    largest = np.max([(found[name] - usual[name]) / unit[name] for name in found], axis=0)
    # Strictly above what the share ``level`` of the deals reaches.
    place = int(np.ceil((1 - level) * len(largest))) - 1
    limit = float(np.sort(largest)[place])
    return {
        name: max(columns[name].least, float(np.nextafter(usual[name] + limit * unit[name], 1e9)))
        for name in found
    }


def _distances(column: Column, deal: Numbers) -> Numbers:
    """Of each deal: rows of ``deal`` are 1 where a row of the column goes to the reference."""
    there = ~np.isnan(column.values)
    values, deal = column.values[there], deal[:, there]
    if not values.size:
        return np.zeros(len(deal))
    if column.kind == "category":
        return _jensen_shannon(values, deal)
    return _wasserstein(values, deal)


def _wasserstein(values: Numbers, deal: Numbers) -> Numbers:
    """Area between the two distribution functions, in standard deviations of the reference."""
    levels, place = np.unique(values, return_inverse=True)
    first, second = _counts(place, len(levels), deal)
    ours, others = _shares(first), _shares(second)
    gaps = np.diff(levels)
    areas = np.abs(np.cumsum(ours - others, axis=1)[:, :-1]) @ gaps
    means = ours @ levels
    deviations = np.sqrt(np.maximum(ours @ levels**2 - means**2, 0.0))
    return np.asarray(areas / np.maximum(deviations, 0.001))


def _jensen_shannon(codes: Numbers, deal: Numbers) -> Numbers:
    """The distance, to the base e: 0 to 0.83."""
    levels, place = np.unique(codes, return_inverse=True)
    first, second = map(_shares, _counts(place, len(levels), deal))
    middle = (first + second) / 2
    divergence = (_relative_entropy(first, middle) + _relative_entropy(second, middle)) / 2
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0)))


def _counts(place: NDArray[np.int64], size: int, deal: Numbers) -> tuple[Numbers, Numbers]:
    """How many rows of each value (every one of them occurs) go to either side, for each deal."""
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(size))
    ours = np.add.reduceat(deal[:, order], starts, axis=1)
    both = np.bincount(place, minlength=size).astype(np.float64)
    return np.asarray(ours), np.asarray(both - ours)


def _shares(counts: Numbers) -> Numbers:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))


def _relative_entropy(shares: Numbers, of: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log(shares / of), 0.0)
    return np.asarray(terms.sum(axis=1))
