"""Can a policy ever reach a verdict with this traffic? Asked before a rollout starts.

Expected growth of the two e-processes per canary session, at the rates that the traffic is said to
have and with unknown labels filled in against each verdict, gives the canary sessions that a promotion
of an equal canary and a rollback of a harmful one take on average. A growth of 0 or less means never,
however long one waits: too many labels are missing for the margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from evaluators.betting import Counts, Numbers, as_good, worse
from evaluators.simulation import Terms, Traffic

SETTLED_BLOCKS = 400
"""Blocks after which beliefs about the champion have settled; growth is measured behind them."""


@dataclass(frozen=True)
class Reach:
    """What a policy can hope for. Sessions are of the canary; inf: never."""

    promotion_sessions: float
    """Expected until a canary as good as the champion is promoted."""
    rollback_sessions: float
    """Expected until a canary that does the harm asked about is rolled back."""
    hours: float
    """Until the later of the two, with the delay of labels."""
    reasons: tuple[str, ...]
    """Why this traffic is not likely to meet it; empty when it does. What no traffic can meet is refused
    when a rollout opens (``RolloutPolicy.unreachable``)."""

    @property
    def met(self) -> bool:
        return not self.reasons


def reachable(
    terms: Terms, traffic: Traffic, *, deadline_hours: float = math.inf, harm: float = 0.1
) -> Reach:
    """Whether the terms can be met before their own limits.

    Args:
        terms: margins, levels, steps, and the most canary sessions.
        traffic: what is expected; its own ``harm`` is ignored.
        deadline_hours: the rollout's, for the canary state.
        harm: what a rollback must be able to find.

    Raises ValueError when ``harm`` is none beyond the rollback margin.
    """
    if harm <= terms.rollback_margin:
        raise ValueError(
            f"a harm of {harm:g} is within the rollback margin: no rollback is asked for"
        )
    if terms.champion_is_teacher:
        # Expected as beside an adapter that is always right, which takes no fewer sessions.
        traffic = replace(traffic, champion=1.0)
    share = terms.steps[-1]
    equal, harmful = replace(traffic, harm=0.0), replace(traffic, harm=harm)
    good = _needed(
        terms.alpha_good, _growth(equal, share, lambda c: as_good(c, terms.margin), for_bad=False)
    )
    bad = _needed(
        terms.alpha_bad,
        _growth(harmful, share, lambda c: worse(c, terms.rollback_margin), for_bad=True),
    )
    later = max(good, bad)
    hours = _hours(later, terms, traffic) + traffic.maturity_hours
    missing = (
        traffic.champion * traffic.missing_right + (1 - traffic.champion) * traffic.missing_wrong
    )
    reasons = [
        f"{what} takes about {sessions:.0f} canary sessions, more than the {terms.max_sessions} "
        f"allowed: {advice}, or allow more sessions"
        for what, sessions, advice in (
            ("a promotion of an equal canary", good, f"widen the margin of {terms.margin:g}"),
            (f"a rollback of a canary {harm:g} worse", bad, "ask for a larger harm"),
        )
        if terms.max_sessions < sessions < math.inf
    ]
    reasons += [
        f"{what} can never happen: with {missing:.0%} of the labels missing the worst case is always "
        "possible; collect more labels or widen the margin"
        for what, sessions in (("a promotion", good), (f"a rollback at a harm of {harm:g}", bad))
        if sessions == math.inf
    ]
    if not reasons and hours > deadline_hours:
        reasons.append(
            f"a verdict takes about {hours:.0f} hours at {traffic.sessions_per_hour:g} sessions an "
            f"hour, more than the deadline of {deadline_hours:.0f}: raise the canary's share, widen "
            "the margin or allow more time"
        )
    return Reach(good, bad, hours, tuple(reasons))


def _growth(
    traffic: Traffic, share: float, running: Callable[[Counts], Numbers], *, for_bad: bool
) -> float:
    """Expected log e-value per canary session, in blocks of the usual composition.

    A block's log factor is linear in its sums, so its mean is the value at the mean sums.
    """

    def scored(right: float, best: bool) -> float:
        known = right * (1 - traffic.missing_right)
        lost = right * traffic.missing_right + (1 - right) * traffic.missing_wrong
        return known + lost if best else known

    right = traffic.champion - traffic.harm
    canary = scored(right, for_bad)
    if for_bad:
        canary += traffic.forgiven * (1 - right) * (1 - traffic.missing_wrong)
    champion = scored(traffic.champion, not for_bad)
    beside = (1 - share) / share
    ones = np.ones(SETTLED_BLOCKS)
    log_e = running(Counts(ones, ones * canary, ones * beside, ones * beside * champion))
    half = SETTLED_BLOCKS // 2
    return float((log_e[-1] - log_e[half - 1]) / (SETTLED_BLOCKS - half))


def _needed(alpha: float, growth: float) -> float:
    return math.log(1 / alpha) / growth if growth > 1e-6 else math.inf


def _hours(canaries: float, terms: Terms, traffic: Traffic) -> float:
    """Time in which so many canary sessions come, step by step."""
    hours, left = 0.0, canaries
    for share in terms.steps[:-1]:
        now = min(left, terms.step_sessions)
        hours += now / (share * traffic.sessions_per_hour)
        left -= now
    return hours + left / (terms.steps[-1] * traffic.sessions_per_hour)
