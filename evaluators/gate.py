"""Whether a candidate may go on to a rollout: a pure decision on what the caller would get.

The candidate system (adapter where accepted, teacher elsewhere) must be non-inferior to the
incumbent by a margin, at a one-sided level, and answer enough calls to be worth it. Everything the
decision rests on is in ``GateEvidence``; the same evidence and policy always give the same result.

How much evidence a first try takes with the defaults (margin 0.05, level 0.05) and the teacher as
incumbent: no lost row in 69, at most one in 104. With fewer the gate says inconclusive, and
inconclusive never passes. Each further try against the same incumbent takes more, see ``tries.py``:
the level is spent over them, so that many nights let no bad adapter through.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from evaluators.engine_match import EngineMatch
from evaluators.further import MetricEvidence, judge_metrics
from evaluators.gate_policy import GatePolicy
from evaluators.guards import judge_golden, judge_slices
from evaluators.honesty import Honesty
from evaluators.intervals import difference_bounds, proportion_upper, session_bootstrap
from evaluators.paired import MAX_ROWS, loss_upper
from evaluators.served import GateRow
from evaluators.tries import level_of_try

Verdict = Literal["pass", "fail", "inconclusive"]

TEACHER = "teacher"
# More engine failures than this among the test rows say something of the engine, not the adapter.
MAX_ERROR_SHARE = 0.1


@dataclass(frozen=True)
class GateEvidence:
    """All that the gate looks at, as plain data."""

    candidate: str
    incumbent: str
    """An adapter's name, or ``teacher``."""
    rows: tuple[GateRow, ...]
    earlier: Mapping[str, tuple[GateRow, ...]] = field(default_factory=dict)
    """Test sets of earlier dataset versions by digest: what must not be unlearned."""
    calibration: Mapping[str, Any] | None = None
    """``Threshold.to_dict()``; None when every answer that passes its checks is shown."""
    tries: int = 1
    """The how-manieth adapter this is that is judged against this incumbent."""
    golden: tuple[GateRow, ...] = ()
    """Cases that a person pinned; scores are 1 (right) or 0."""
    golden_seen: int = 0
    """How many of them are in the adapter's training data."""
    honesty: Honesty | None = None
    match: EngineMatch | None = None
    """Engine and trainer on the same prompts; None where the trainer left nothing to compare."""
    metrics: Mapping[str, MetricEvidence] = field(default_factory=dict)
    """Further metrics by name, whether or not the policy names them."""

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON, 64 hex characters."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As JSON. What came later than the first decisions is left out where there is none of it,
        so that theirs keep their digests."""
        later = {
            "tries": (self.tries, 1),
            "golden": ([row.to_dict() for row in self.golden], []),
            "golden_seen": (self.golden_seen, 0),
            "honesty": (None if self.honesty is None else self.honesty.to_dict(), None),
            "match": (None if self.match is None else self.match.to_dict(), None),
            "metrics": ({name: known.to_dict() for name, known in self.metrics.items()}, {}),
        }
        return {
            "candidate": self.candidate,
            "incumbent": self.incumbent,
            "rows": [row.to_dict() for row in self.rows],
            "earlier": {
                name: [row.to_dict() for row in rows] for name, rows in self.earlier.items()
            },
            "calibration": None if self.calibration is None else dict(self.calibration),
            **{name: value for name, (value, none) in later.items() if value != none},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GateEvidence:
        return cls(
            value["candidate"],
            value["incumbent"],
            tuple(map(GateRow.from_dict, value["rows"])),
            {
                name: tuple(map(GateRow.from_dict, rows))
                for name, rows in value.get("earlier", {}).items()
            },
            value.get("calibration"),
            value.get("tries", 1),
            tuple(map(GateRow.from_dict, value.get("golden", ()))),
            value.get("golden_seen", 0),
            Honesty.from_dict(value["honesty"]) if value.get("honesty") else None,
            EngineMatch.from_dict(value["match"]) if value.get("match") else None,
            metrics={
                name: MetricEvidence.from_dict(known)
                for name, known in value.get("metrics", {}).items()
            },
        )


@dataclass(frozen=True)
class GateResult:
    verdict: Verdict
    reasons: tuple[str, ...]
    """Plain words; what decides the verdict comes first."""
    numbers: dict[str, Any]
    evidence_digest: str

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reasons": list(self.reasons)}


def decide(policy: GatePolicy, evidence: GateEvidence) -> GateResult:
    """Pass, fail, or inconclusive. Pure: no clock, no input but its arguments.

    A failed condition fails the candidate; a condition that the rows cannot settle makes it
    inconclusive; only when every condition is shown to hold does it pass.
    """
    rows = evidence.rows
    failed: list[str] = []
    open_: list[str] = []
    held: list[str] = []
    numbers: dict[str, Any] = {"rows": len(rows), "sessions": len({row.session for row in rows})}
    errors = sum(row.error for row in rows)
    numbers["errors"] = errors
    if len(rows) < max(policy.min_rows, 1):
        reason = (
            f"{len(rows)} test rows are fewer than the {policy.min_rows} that the gate asks for"
        )
        return GateResult("inconclusive", (reason,), numbers, evidence.digest)
    if errors > MAX_ERROR_SHARE * len(rows):
        reason = f"the engine failed on {errors} of {len(rows)} rows: judge again when it is well"
        return GateResult("inconclusive", (reason,), numbers, evidence.digest)

    if evidence.match is not None:
        numbers["engine_match"] = evidence.match.to_dict()
        if not evidence.match.agrees:
            open_.append(f"{evidence.match.said}: find out why, then judge again")
    _judge_coverage(policy, evidence, numbers, failed, open_, held)
    _judge_difference(policy, evidence, numbers, failed, open_, held)
    _judge_base(policy, rows, numbers, failed, open_, held)
    for name, earlier in sorted(evidence.earlier.items()):
        _judge_earlier(policy, name, earlier, numbers, failed, open_, held)
    said = {"failed": failed, "open": open_, "held": held}
    guards = judge_golden(evidence.golden, evidence.golden_seen, numbers) + judge_slices(
        rows,
        policy.slices,
        least_rows=policy.min_slice_rows,
        margin=policy.margin,
        level=policy.level,
        numbers=numbers,
    )
    guards += judge_metrics(
        policy.metrics,
        evidence.metrics,
        level=level_of_try(policy.level, evidence.tries),
        fail_level=policy.level,
        least_rows=policy.min_rows,
        lower_bound=lambda differences, level, margin: non_inferiority_bounds(
            differences,
            level,
            incumbent=evidence.incumbent,
            margin=policy.exact_margin(margin),
        )[0],
        numbers=numbers,
    )
    for finding in guards:
        said[finding.state].append(finding.said)
    if evidence.honesty is not None:
        numbers["honesty"] = evidence.honesty.to_dict()
        held += evidence.honesty.notes()
        honesty = evidence.honesty
        if honesty.telling_prompts < policy.min_rows:
            learned = "" if honesty.unseen_prompts is None else " that it was not trained on"
            open_.append(
                f"the test asks {honesty.telling_prompts} different prompts{learned}, fewer than the "
                f"{policy.min_rows} rows that the gate asks for: repeating them shows nothing more"
            )
    verdict: Verdict = "fail" if failed else "inconclusive" if open_ else "pass"
    return GateResult(verdict, (*failed, *open_, *held), numbers, evidence.digest)


def non_inferiority_bounds(
    differences: Sequence[float], level: float, *, incumbent: str, margin: float | None = None
) -> tuple[float, float, str]:
    """One-sided lower and upper bounds of the mean paired difference, and the method's name.

    Rows count as independent here; the gate lets a bootstrap over sessions disagree.

    * All differences -1, 0 or 1 and the teacher the incumbent: lost rows are binomial, so the exact
      Clopper-Pearson bound holds; gains, which the teacher on its own labels hardly leaves room
      for, are ignored, which can only lower the bound.
    * The same against an adapter: the exact test of ``paired``, turned around.
    * Graded scores, and more rows than that test takes: the betting bound.

    Args:
        margin: where the lower bound has to be right to the last row. None: as decisions were made
            before the exact test, by the better of the binomial and the betting bound, each at half
            the level.
    """
    low, high = difference_bounds(differences, level)
    if any(difference not in (-1.0, 0.0, 1.0) for difference in differences):
        return low, high, "betting"
    lost = sum(difference < 0 for difference in differences)
    n = len(differences)
    if incumbent == TEACHER:
        return -proportion_upper(lost, n, level), high, "exact binomial on lost rows"
    if margin is not None and n <= MAX_ROWS:
        won = sum(difference > 0 for difference in differences)
        return -loss_upper(lost, won, n, level, margin), high, "exact paired score test"
    halves = (-proportion_upper(lost, n, level / 2), difference_bounds(differences, level / 2)[0])
    return max(halves), high, "better of exact binomial and betting at half the level"


def _judge_coverage(
    policy: GatePolicy,
    evidence: GateEvidence,
    numbers: dict[str, Any],
    failed: list[str],
    open_: list[str],
    held: list[str],
) -> None:
    coverage = float(np.mean([row.accepted for row in evidence.rows]))
    numbers["coverage"] = coverage
    shown = [row.adapter for row in evidence.rows if row.accepted]
    numbers["shown_score"] = float(np.mean(shown)) if shown else None
    calibration = evidence.calibration
    if calibration is not None:
        numbers["threshold"] = calibration.get("value")
    if calibration is not None and calibration.get("value") is None:
        too_few = calibration.get("eligible", 0) < calibration.get("needed", 0)
        said = f"no confidence threshold is certified: {calibration.get('reason', '')}"
        (open_ if too_few and not shown else failed).append(said)
    elif coverage < policy.min_coverage:
        failed.append(
            f"it answers {coverage:.0%} of the calls, below the {policy.min_coverage:.0%} "
            "that would make it worth serving"
        )
    else:
        held.append(f"it answers {coverage:.0%} of the calls")


def _judge_difference(
    policy: GatePolicy,
    evidence: GateEvidence,
    numbers: dict[str, Any],
    failed: list[str],
    open_: list[str],
    held: list[str],
) -> None:
    rows = evidence.rows
    differences = [row.served - row.incumbent for row in rows]
    level = level_of_try(policy.level, evidence.tries)
    low, _, method = non_inferiority_bounds(
        differences,
        level,
        incumbent=evidence.incumbent,
        margin=policy.exact_margin(policy.margin),
    )
    high = difference_bounds(differences, policy.level)[1]
    sessions = [row.session for row in rows]
    clustered, _ = session_bootstrap(differences, sessions, 2 * level)
    numbers |= {
        "adapter_score": float(np.mean([row.adapter for row in rows])),
        "served_score": float(np.mean([row.served for row in rows])),
        "incumbent_score": float(np.mean([row.incumbent for row in rows])),
        "difference": float(np.mean(differences)),
        "lower_bound": low,
        "upper_bound": high,
        "session_lower_bound": clustered,
        "method": method,
        "tries": evidence.tries,
        "level": level,
        "lost_rows": sum(difference < 0 for difference in differences),
        "won_rows": sum(difference > 0 for difference in differences),
    }
    said = (
        f"served score {numbers['served_score']:.3f} against {numbers['incumbent_score']:.3f} of "
        f"{evidence.incumbent} on {len(rows)} rows; the loss is at most {max(0.0, -low):.3f} with "
        f"{1 - level:.2%} confidence, tolerated is {policy.margin:.3f}"
        + (f"; it is try {evidence.tries} against it" if evidence.tries > 1 else "")
    )
    if high < -policy.margin:
        failed.append(f"worse than the incumbent: {said}")
    elif low < -policy.margin:
        open_.append(f"not shown to be as good as the incumbent: {said}")
    elif clustered < -policy.margin:
        open_.append(
            f"the lost rows gather in few sessions: counted by session the loss may be "
            f"{-clustered:.3f}, tolerated is {policy.margin:.3f}"
        )
    else:
        held.append(f"as good as the incumbent: {said}")


def _judge_base(
    policy: GatePolicy,
    rows: Sequence[GateRow],
    numbers: dict[str, Any],
    failed: list[str],
    open_: list[str],
    held: list[str],
) -> None:
    """The adapter must have learned something: a one-sided sign test on the rows that differ."""
    from scipy.stats import binom

    pairs = [(row.adapter, row.base) for row in rows if row.base is not None and not row.error]
    numbers["base_rows"] = len(pairs)
    if not pairs:
        open_.append("the base model was not measured, so nothing shows what training added")
        return
    better = sum(adapter > base for adapter, base in pairs)
    worse = sum(adapter < base for adapter, base in pairs)
    p_value = float(binom.sf(better - 1, better + worse, 0.5)) if better + worse else 1.0
    base_score = float(np.mean([base for _, base in pairs]))
    own_score = float(np.mean([adapter for adapter, _ in pairs]))
    numbers |= {"base_score": base_score, "adapter_score_on_base_rows": own_score}
    numbers["base_p_value"] = p_value
    said = f"{own_score:.3f} against {base_score:.3f} of the base model on {len(pairs)} rows"
    if own_score <= base_score:
        failed.append(f"no better than the untrained base model: {said}")
    elif p_value > policy.level:
        open_.append(f"not shown to be better than the base model: {said}")
    else:
        held.append(f"better than the base model: {said}")


def _judge_earlier(
    policy: GatePolicy,
    name: str,
    rows: Sequence[GateRow],
    numbers: dict[str, Any],
    failed: list[str],
    open_: list[str],
    held: list[str],
) -> None:
    """An earlier test set may be small: a loss seen there stops a pass, a loss shown there fails."""
    if not rows:
        return
    differences = [row.served - row.incumbent for row in rows]
    mean = float(np.mean(differences))
    low, high = difference_bounds(differences, policy.level)
    numbers.setdefault("earlier", {})[name] = {
        "rows": len(rows),
        "difference": mean,
        "lower_bound": low,
        "upper_bound": high,
    }
    said = f"{mean:+.3f} against the incumbent on {len(rows)} rows of the earlier test {name[:12]}"
    if high < -policy.margin:
        failed.append(f"unlearned something: {said}")
    elif mean < -policy.margin:
        open_.append(f"may have unlearned something: {said}")
    else:
        held.append(f"nothing unlearned: {said}")
