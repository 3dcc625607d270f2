"""A policy tried on made-up traffic before it is trusted: what it would do, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.simulation import Ends, Terms, Traffic, simulate


class PictureUnavailable(Exception):
    """The library that draws is not installed."""


@dataclass(frozen=True)
class Row:
    """One harm. Medians are over the runs that ended so; None where none did."""

    harm: float
    rolled_back: float
    promoted: float
    inconclusive: float
    reading: str
    """What a rollback and a promotion would be: right or false."""
    canary_sessions: float | None
    """Median until a verdict of either kind."""
    hours: float | None
    """Likewise, with the wait for labels."""
    hours_90: float | None
    """By then nine of ten verdicts have fallen."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    traffic: Traffic
    terms: Terms
    ends: Mapping[float, Ends]

    def rows(self) -> list[Row]:
        return [_row(harm, ends, self.traffic, self.terms) for harm, ends in self.ends.items()]


def try_policy(
    traffic: Traffic,
    terms: Terms,
    harms: Sequence[float],
    *,
    runs: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Trial:
    """``runs`` rollouts for every harm; ``progress`` hears how many are done in all.

    Raises ValueError for harms, runs or terms that cannot be simulated.
    """
    if runs < 1 or not harms:
        raise ValueError("a trial needs at least one run and one harm")
    found: dict[float, Ends] = {}
    for harm in dict.fromkeys(harms):
        begun = len(found) * runs

        def told(done: int, begun: int = begun) -> None:
            progress(begun + done)

        found[harm] = simulate(
            replace(traffic, harm=harm),
            terms,
            runs=runs,
            seed=seed + len(found),
            progress=told,
        )
    return Trial(traffic, terms, found)


def draw(trial: Trial, to: Path) -> None:
    """One HTML file that needs no network: how many rollouts have ended by when, for every harm.

    Raises PictureUnavailable without plotly, OSError when the file cannot be written.
    """
    try:
        from plotly.graph_objects import Figure, Scatter
    except ImportError as error:
        raise PictureUnavailable(
            "a picture needs plotly: install the extra `judge`, or leave --picture out"
        ) from error
    figure = Figure()
    shades = ("#2f6f4f", "#3d6fb6", "#c98a1b", "#b5432f", "#6b4d9a", "#555555")
    last = max(float(_hours(ends, trial.traffic).max()) for ends in trial.ends.values())
    for place, (harm, ends) in enumerate(trial.ends.items()):
        hours = _hours(ends, trial.traffic)
        for what, fell, dash in (
            ("rolled back", ends.bad > 0, "solid"),
            ("promoted", ends.good > 0, "dot"),
        ):
            when = np.sort(hours[fell])
            share = np.arange(1, len(when) + 1) / ends.runs
            kept = np.unique(np.linspace(0, max(len(when) - 1, 0), 200).astype(int))[: len(when)]
            figure.add_trace(
                Scatter(
                    # To the end, for what has not ended by then never does.
                    x=[0.0, *when[kept].tolist(), last],
                    y=[0.0, *share[kept].tolist(), float(fell.mean())],
                    mode="lines",
                    name=f"{harm * 100:g} points worse: {what}",
                    line={"dash": dash, "color": shades[place % len(shades)], "shape": "hv"},
                )
            )
    terms = trial.terms
    figure.update_layout(
        title=f"Rolled back beyond {terms.rollback_margin * 100:g} points, promoted within "
        f"{terms.margin * 100:g}; the champion is right on {trial.traffic.champion:.0%}",
        xaxis_title="hours since the canary began",
        yaxis_title="share of rollouts",
        yaxis={"range": [0, 1.01], "tickformat": ".0%"},
        template="plotly_white",
    )
    figure.write_html(str(to), include_plotlyjs=True)


def _row(harm: float, ends: Ends, traffic: Traffic, terms: Terms) -> Row:
    fell = (ends.bad > 0) | (ends.good > 0)
    hours = _hours(ends, traffic)[fell]
    sessions = np.maximum(ends.bad, ends.good)[fell]
    return Row(
        harm=harm,
        rolled_back=float((ends.bad > 0).mean()),
        promoted=float((ends.good > 0).mean()),
        inconclusive=float((~fell).mean()),
        reading=_reading(harm, terms),
        canary_sessions=float(np.median(sessions)) if len(sessions) else None,
        hours=float(np.median(hours)) if len(hours) else None,
        hours_90=float(np.quantile(hours, 0.9)) if len(hours) else None,
    )


def _reading(harm: float, terms: Terms) -> str:
    said = []
    said.append("false rollback" if harm <= terms.rollback_margin else "rollback is right")
    said.append("false promotion" if harm >= terms.margin else "promotion is right")
    return ", ".join(said)


def _hours(ends: Ends, traffic: Traffic) -> NDArray[np.float64]:
    """The session that decided was assigned so long after the first, and its label waited for."""
    return np.asarray(ends.sessions / traffic.sessions_per_hour + traffic.maturity_hours)
