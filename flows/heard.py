"""Whether the answers of a replay are enough to judge by, or a sick engine's. No Prefect here."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.gate import MAX_ERROR_SHARE
from evaluators.replay import NOT_ASKED, Outcome
from serving.engines.protocol import EngineUnavailable


def require_answers(outcomes: Sequence[Outcome]) -> None:
    """A judgement is kept for good, so it must be of the adapter and not of a sick engine.

    Raises EngineUnavailable when the engine gave up on more answers than the gate would let pass.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) > MAX_ERROR_SHARE * len(outcomes):
        raise EngineUnavailable(
            f"the engine failed on {len(errors)} of {len(outcomes)} questions, the last time with: "
            f"{errors[-1]}; nothing is judged, run the night again when it is well"
        )


def require_incumbent(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Where the incumbent gives no answer the teacher's stands for it, as it does for callers. What it
    refuses it would refuse again, so that is said with the decision.

    Raises EngineUnavailable, as ``require_answers`` does, when it was the engine that was sick.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) <= MAX_ERROR_SHARE * len(outcomes):
        return ()
    if any(not error.startswith(("EngineRefused", NOT_ASKED)) for error in errors):
        require_answers(outcomes)
    return (
        f"the incumbent {name} gave no answer to {len(errors)} of {len(outcomes)} questions, where "
        f"the teacher answers for it; the first time with: {errors[0].split(':')[0]}",
    )


def require_golden(outcomes: Sequence[Outcome]) -> None:
    """One case that the engine did not answer would leave the judgement open for good.

    Raises EngineUnavailable, but not for what it refuses: that it would refuse again.
    """
    errors = [o.error for o in outcomes if o.error and not o.error.startswith("EngineRefused")]
    if errors:
        raise EngineUnavailable(f"the engine failed on a golden case, with: {errors[-1]}")
