"""Many rollouts at once on made-up traffic, judged by the product's own decision code.

Only the traffic is simulated: where blocks end, what they are worth and when a verdict falls come
from ``sequential`` and ``betting``. The arms are drawn once per chunk of runs and shared by it (the
test is valid whoever is in which arm), outcomes anew for every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluators.betting import Counts, Numbers, as_good, check_margin, paired_worse, worse
from evaluators.sequential import block_ends

Bools = NDArray[np.bool_]
_NEVER = np.iinfo(np.int64).max
_CHUNK_SESSIONS = 4_000_000
"""Session outcomes held in memory at once; a few bytes each."""


@dataclass(frozen=True)
class Traffic:
    """What arrives. Shares and rates are fractions of one; scores are right or wrong, by agreement
    with the teacher.

    Raises ValueError for values out of range.
    """

    champion: float = 0.85
    """Chance that the champion is right; 1 for the teacher."""
    harm: float = 0.0
    """By how much the canary is right less often."""
    drift: float = 0.0
    """Change of both chances from the first session to the last, in a straight line."""
    missing_right: float = 0.0
    """Share of right answers whose label does not come within the maturity horizon."""
    missing_wrong: float = 0.0
    feedback_right: float = 0.0
    """Share of right answers of which the caller says something."""
    feedback_wrong: float = 0.0
    contrary: float = 0.0
    """Share of what callers say that is contrary to the teacher."""
    feedback_on: Literal["both", "canary", "champion"] = "both"
    forgiven: float = 0.0
    """Share of the canary's wrong answers that a judge is asked about while the rollout runs, and calls
    as good: ``judge.rollout_share`` times how often it says so."""
    sessions_per_hour: float = 100.0
    maturity_hours: float = 0.0

    def __post_init__(self) -> None:
        shares = [self.champion, self.missing_right, self.missing_wrong]
        shares += [self.feedback_right, self.feedback_wrong, self.contrary, self.forgiven]
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("a base rate, a missing share and one of feedback lie between 0 and 1")
        if not (-1 <= self.harm <= 1 and -1 <= self.drift <= 1):
            raise ValueError("harm and drift are differences of two rates: between -1 and 1")
        if not 0 <= self.champion - self.harm <= 1:
            raise ValueError(
                f"a canary that is {self.harm:g} worse than a champion that is right on "
                f"{self.champion:g} would be right on {self.champion - self.harm:g}: that is no share"
            )
        if not (self.sessions_per_hour > 0 and self.maturity_hours >= 0):
            raise ValueError("sessions per hour are above 0, a maturity is not negative")


@dataclass(frozen=True)
class Terms:
    """How the rollout is judged: the part of its policy that a simulation needs.

    Raises ValueError for terms out of range.
    """

    margin: float = 0.05
    rollback_margin: float = 0.01
    alpha_bad: float = 0.0275
    """The level of this one metric: its share of the whole policy's."""
    alpha_good: float = 0.05
    steps: tuple[float, ...] = (0.1,)
    step_sessions: int = 20
    max_sessions: int = 500
    """Canary sessions, then inconclusive."""
    champion_is_teacher: bool = False

    def __post_init__(self) -> None:
        check_margin(self.margin)
        check_margin(self.rollback_margin)
        if not (0 < self.alpha_bad < 1 and 0 < self.alpha_good < 1):
            raise ValueError("levels lie between 0 and 1")
        if not self.steps or not all(0 < share < 1 for share in self.steps):
            raise ValueError(
                "canary shares lie between 0 and 1: at 0 % there is no canary to judge, at 100 % no "
                "champion to judge it by"
            )
        if self.step_sessions < 1 or self.max_sessions < 1:
            raise ValueError("a step and a rollout have at least one canary session")


@dataclass(frozen=True)
class Sessions:
    """Who is assigned where, in assignment order; blocks never span two steps."""

    canary: Bools
    starts: NDArray[np.int64] = field(repr=False)
    """First session of each block. The last entry is the end of the last block."""
    champion_is_teacher: bool = False


@dataclass(frozen=True)
class Stream:
    """Outcomes of a chunk of runs: ``right`` and ``known`` are (runs, sessions)."""

    sessions: Sessions
    right: Bools
    known: Bools
    said: NDArray[np.int8] | None = None
    """What callers said: 1 right, -1 wrong, 0 nothing; None: nobody said anything."""
    forgiven: Bools | None = None
    """Wrong answers of the canary that the judge calls as good; None: no judge was asked."""


@dataclass(frozen=True)
class Ends:
    """How every run ended: 1-based canary and all sessions at the verdict, 0 where it never fell."""

    bad: NDArray[np.int64]
    good: NDArray[np.int64]
    sessions: NDArray[np.int64]

    @property
    def runs(self) -> int:
        return len(self.bad)


def draw_sessions(random: np.random.Generator, terms: Terms) -> Sessions:
    """Arms step by step until ``max_sessions`` canaries came, and the blocks they make."""
    arms: list[Bools] = []
    starts: list[int] = []
    left, begin = terms.max_sessions, 0
    for place, share in enumerate(terms.steps):
        last = place + 1 == len(terms.steps)
        wanted = left if last else min(terms.step_sessions, left)
        gaps = random.geometric(share, wanted)
        step = np.zeros(int(gaps.sum()), dtype=bool)
        step[np.cumsum(gaps) - 1] = True
        ends = block_ends(
            ("canary" if one else "champion" for one in step.tolist()),
            champion_is_teacher=terms.champion_is_teacher,
        )
        starts += [begin + start for start in [0, *ends][: len(ends)]]
        begin += len(step)
        # What is left of a step after its last block is cut off, so that blocks lie end to end.
        if ends:
            cut = len(step) - ends[-1]
            step, begin = step[: ends[-1]], begin - cut
        else:
            step, begin = step[:0], begin - len(step)
        arms.append(step)
        left -= wanted
    return Sessions(
        np.concatenate(arms),
        np.array([*starts, begin], dtype=np.int64),
        terms.champion_is_teacher,
    )


def draw_stream(
    random: np.random.Generator, traffic: Traffic, sessions: Sessions, runs: int
) -> Stream:
    """Outcomes of ``runs`` rollouts. Raises ValueError for a teacher that is not always right."""
    n = len(sessions.canary)
    if sessions.champion_is_teacher and (traffic.champion < 1 or traffic.drift):
        raise ValueError("the teacher agrees with itself: its base rate is 1, without a drift")
    drift = traffic.drift * np.linspace(0, 1, n, dtype=np.float32)
    chance = np.clip(traffic.champion + drift - traffic.harm * sessions.canary, 0, 1)
    right = random.random((runs, n), dtype=np.float32) < chance.astype(np.float32)
    if traffic.missing_right == traffic.missing_wrong == 0:
        known: Bools = np.broadcast_to(np.ones(1, dtype=bool), right.shape)
    else:
        lost = np.where(right, np.float32(traffic.missing_right), np.float32(traffic.missing_wrong))
        known = random.random((runs, n), dtype=np.float32) >= lost
    if sessions.champion_is_teacher:
        known = known | ~sessions.canary
    said = _said(random, traffic, sessions, right)
    forgiven = None
    if traffic.forgiven:
        forgiven = random.random(right.shape, dtype=np.float32) < traffic.forgiven
        forgiven &= sessions.canary & ~right
    return Stream(sessions, right, known, said, forgiven)


def _said(
    random: np.random.Generator, traffic: Traffic, sessions: Sessions, right: Bools
) -> NDArray[np.int8] | None:
    if traffic.feedback_right == traffic.feedback_wrong == 0:
        return None
    share = np.where(right, np.float32(traffic.feedback_right), np.float32(traffic.feedback_wrong))
    spoken = random.random(right.shape, dtype=np.float32) < share
    if traffic.feedback_on != "both":
        spoken &= sessions.canary == (traffic.feedback_on == "canary")
    contrary = random.random(right.shape, dtype=np.float32) < traffic.contrary
    return np.where(spoken, np.where(right ^ contrary, 1, -1), 0).astype(np.int8)


def counts_of(stream: Stream) -> tuple[Counts, Counts]:
    """The blocks as ``bad`` and as ``good`` see them: what is unknown counts against each verdict."""
    canary, starts = stream.sessions.canary, stream.sessions.starts[:-1]
    sure, perhaps = _bounds(stream)

    def sums(scores: Bools) -> Numbers:
        return np.add.reduceat(scores, starts, axis=1, dtype=np.int32).astype(float)

    shape = (len(stream.right), len(starts))
    canaries = np.broadcast_to(np.add.reduceat(canary, starts, dtype=np.int32) * 1.0, shape)
    champions = np.broadcast_to(np.add.reduceat(~canary, starts, dtype=np.int32) * 1.0, shape)
    bad = Counts(canaries, sums(perhaps & canary), champions, sums(sure & ~canary))
    good = Counts(canaries, sums(sure & canary), champions, sums(perhaps & ~canary))
    return bad, good


def _bounds(stream: Stream) -> tuple[Bools, Bools]:
    """Whether each session is right for sure, and perhaps: ``metrics.outcome_of`` for quality."""
    sure, perhaps, said = stream.right & stream.known, stream.right | ~stream.known, stream.said
    if stream.forgiven is not None:
        perhaps = perhaps | (stream.forgiven if said is None else stream.forgiven & (said == 0))
    if said is None:
        return sure, perhaps
    if not stream.sessions.champion_is_teacher:
        return sure & (said >= 0), perhaps | (said > 0)
    canary = stream.sessions.canary
    return np.where(canary & (said != 0), said > 0, sure), perhaps | (canary & (said > 0))


def judge(stream: Stream, terms: Terms) -> Ends:
    """First verdicts of every run of a chunk; ``bad`` comes first when both fall on one block."""
    for_bad, for_good = counts_of(stream)
    bad = _first(worse(for_bad, terms.rollback_margin) >= np.log(1 / terms.alpha_bad))
    good = _first(as_good(for_good, terms.margin) >= np.log(1 / terms.alpha_good))
    canaries = np.cumsum(for_bad.canaries[0]).astype(np.int64)
    all_sessions = stream.sessions.starts[1:]
    is_bad = (bad != _NEVER) & (bad <= good)
    is_good = (good != _NEVER) & ~is_bad
    at = np.where(is_bad, bad, np.where(is_good, good, 0))
    spent = np.where(is_bad | is_good, all_sessions[at], all_sessions[-1])
    return Ends(np.where(is_bad, canaries[at], 0), np.where(is_good, canaries[at], 0), spent)


def simulate(
    traffic: Traffic,
    terms: Terms,
    *,
    runs: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Ends:
    """``runs`` rollouts. The same seed gives the same answer."""
    found = []
    done = 0
    for stream in streams(traffic, terms, runs=runs, seed=seed):
        found.append(judge(stream, terms))
        done += found[-1].runs
        progress(done)
    return Ends(*(np.concatenate([getattr(ends, name) for ends in found]) for name in _FIELDS))


_FIELDS = ("bad", "good", "sessions")


def streams(traffic: Traffic, terms: Terms, *, runs: int, seed: int) -> Iterator[Stream]:
    """The chunks of a simulation, for other rules to be tried on the same outcomes."""
    random = np.random.default_rng(seed)
    while runs > 0:
        sessions = draw_sessions(random, terms)
        size = max(1, min(runs, 250, _CHUNK_SESSIONS // max(1, len(sessions.canary))))
        yield draw_stream(random, traffic, sessions, size)
        runs -= size


def simulate_shadow(
    only_champion: float,
    only_candidate: float,
    *,
    rollback_margin: float,
    alpha_bad: float,
    pairs: int,
    runs: int,
    seed: int,
) -> NDArray[np.int64]:
    """Pairs until the shadow finds the candidate worse, 0 for never.

    Args:
        only_champion: share of prompts that the champion alone answers right.
        only_candidate: share that the candidate alone answers right.
    """
    random = np.random.default_rng(seed)
    drawn = random.random((runs, pairs))
    differences = np.where(
        drawn < only_champion, -1.0, np.where(drawn < only_champion + only_candidate, 1.0, 0.0)
    )
    first = _first(paired_worse(differences, rollback_margin) >= np.log(1 / alpha_bad))
    return np.where(first == _NEVER, 0, first + 1)


def _first(over: Bools) -> NDArray[np.int64]:
    return np.where(over.any(axis=-1), over.argmax(axis=-1), _NEVER)
