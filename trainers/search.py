"""Candidates for one task: which ranks and learning rates to try, and who goes on. Pure.

Successive halving (K. Jamieson, A. Talwalkar, Non-stochastic best arm identification and
hyperparameter optimization, 2016): all candidates train for a share of the steps, the better part goes
on with several times as many, until one is left, which trains to its end. A candidate that goes on
resumes from its checkpoint, so nothing is trained twice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trainers.spec import TrainSpec

ETA = 2
"""One in so many goes on, with so many times the steps."""

CURVE_SHARES = (0.1, 0.3)
"""Shares of the examples that the two short runs of a learning curve see."""
CURVE_STEPS = 4
"""Each of them takes one in so many of the whole run's steps."""
WORTH_MORE_DATA = 0.02
"""Fall of the validation loss that twice the data must promise for more data to help."""


@dataclass(frozen=True)
class Trial:
    """One candidate's record: what it reached in the last rung that it trained in."""

    spec_digest: str
    rank: int
    learning_rate: float
    step: int
    loss: float | None
    """Validation loss, nats per answer token, or per byte where bases compete; None when it failed."""
    outcome: str
    """``won``, ``better, not served``, ``dropped`` or ``failed: why``."""
    base: str = ""


def candidates(
    spec: TrainSpec,
    ranks: Sequence[int],
    learning_rates: Sequence[float],
    limit: int,
    bases: Sequence[tuple[str, str]] = (),
) -> list[TrainSpec]:
    """``spec`` itself first, then on the other bases, then its variations; alpha stays in proportion.

    Args:
        limit: of them at most; the bases are all among them.
        bases: (name, fingerprint) of each further base model.
    """
    found = [spec]
    for name, digest in bases:
        changed = spec.model_copy(update={"base_model": name, "base_digest": digest})
        if digest not in {one.base_digest for one in found}:
            found.append(changed)
    limit = max(limit, len(found))
    scale = spec.lora.alpha / spec.lora.rank
    for rank in ranks or (spec.lora.rank,):
        for rate in learning_rates or (spec.learning_rate,):
            lora = spec.lora.model_copy(update={"rank": rank, "alpha": scale * rank})
            changed = spec.model_copy(update={"lora": lora, "learning_rate": rate})
            if changed not in found:
                found.append(changed)
    return found[:limit]


def rungs(count: int, steps: int) -> list[int]:
    """The steps at which candidates are compared, rising; none when there is one candidate only."""
    levels = math.ceil(math.log(count, ETA)) if count > 1 else 0
    return sorted({max(1, steps // ETA ** (level + 1)) for level in range(levels)} - {steps})


def share_of_steps(count: int, steps: int) -> float:
    """How many times the steps of one run the whole search takes."""
    total, before, left = 0, 0, count
    for step in rungs(count, steps):
        total += left * (step - before)
        before, left = step, max(1, math.ceil(left / ETA))
    return (total + (steps - before)) / steps


def curve_specs(spec: TrainSpec) -> dict[float, TrainSpec]:
    """Share of the examples to the short run on it: as many steps for each, a quarter of the whole's."""
    steps = max(1, spec.steps // CURVE_STEPS)
    return {
        share: spec.model_copy(update={"data_share": share, "steps": steps})
        for share in CURVE_SHARES
    }


def data_verdict(losses: Mapping[float, float | None]) -> str | None:
    """Whether more data would help, in words; None when a run failed.

    The validation loss is taken to fall as a power of the number of examples (J. Hestness et al., Deep
    learning scaling is predictable, empirically, 2017), so two points say what twice the data gives.

    Args:
        losses: the shares of ``CURVE_SHARES`` to validation loss.
    """
    few, many = (losses.get(share) for share in CURVE_SHARES)
    if few is None or many is None or not few > 0 or not many > 0:
        return None
    power = math.log(few / many) / math.log(CURVE_SHARES[1] / CURVE_SHARES[0])
    gain = 1 - 2**-power
    said = f"validation loss {few:.3f} on 10 % of the examples, {many:.3f} on 30 %"
    return f"more data would {'help' if gain >= WORTH_MORE_DATA else 'not help'} ({said})"


def survivors(
    losses: Mapping[str, float | None], final: bool = False, served: Collection[str] | None = None
) -> list[str]:
    """Who goes on, best first: one in ``ETA``, rounded up, of all, and only one after the last rung.

    Args:
        losses: spec digest to validation loss; None for one that failed, which never goes on.
        served: those whose base an engine serves, None for all. The best of them always goes on, besides.
    """
    ranked = [
        digest
        for _, digest in sorted(
            (loss, digest) for digest, loss in losses.items() if loss is not None and loss == loss
        )
    ]
    kept = ranked[: 1 if final else math.ceil(len(losses) / ETA)]
    if served is not None and not set(kept) & set(served):
        kept += [digest for digest in ranked if digest in served][:1]
    return kept
