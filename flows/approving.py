"""Approval as a suspended run: it waits in Prefect for an answer, without a process of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime

from prefect import flow, get_run_logger
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.artifacts import described
from flows.orchestrator import Orchestrator, OrchestratorDown, OrchestratorRefused
from flows.wiring import Context, open_context
from infra.calls.record import utc_now
from serving.registry.errors import IllegalState, UnknownRollout
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.rollout.orders import give_order

logger = logging.getLogger(__name__)

FLOW = "approval"
ACTOR = "prefect"
GRACE_SECONDS = 3600
"""A run outlives its question by so much, so that who tends the rollouts can say how it ended."""
WAIT_SECONDS = 2.0
"""For Prefect, between two looks at the rollouts: a rollback is not to come late for a question."""
MOST_RUNS = 3
"""Of one question: a run may die before its answer is given."""


class Answer(RunInput):
    """What Prefect's form asks."""

    promote: bool = Field(
        False, description="On: the adapter becomes the champion. Off: the champion stays."
    )
    why: str = Field("by hand", max_length=300, description="Kept with the event.")


@described
@flow(name=FLOW, flow_run_name="approve {adapter}?", timeout_seconds=300)
def approval(rollout_id: str, adapter: str = "the adapter") -> str:
    """Wait for somebody to agree to a promotion; resume this run to answer.

    Args:
        rollout_id: The rollout that waits.
        adapter: Its adapter; shown in the run's name.
    """
    with open_context() as context:
        rollout = context.registry.rollout(rollout_id)
    if not _waits(rollout):
        return _outcome(rollout)
    left = (rollout.deadline - utc_now()).total_seconds()
    # Suspends by ending this process; the second time round it returns what was answered.
    answer = suspend_flow_run(
        wait_for_input=Answer.with_initial_data(description=_question(rollout)),
        timeout=max(1, round(left)) + GRACE_SECONDS,
        key=rollout_id,
    )
    with open_context() as context:
        after = _give(context, rollout_id, answer)
        context.deliver_messages()
    return _outcome(after)


def settle(
    orchestrator: Orchestrator, registry: Registry, say: Callable[[str], None] = lambda _: None
) -> None:
    """A run for each promotion that waits for one; no run for what was answered elsewhere.

    Asked again any time, by any number: a question has one run. Raises OrchestratorDown,
    OrchestratorRefused.
    """
    asked = [one for one in registry.rollouts("open") if _waits(one)]
    going = orchestrator.going(FLOW)
    for run in going:
        rollout_id = str(run.parameters.get("rollout_id"))
        try:
            rollout = registry.rollout(rollout_id)
        except UnknownRollout:
            orchestrator.finish(run.id, "its rollout is gone")
            continue
        # One that is not suspended is on its way to an answer, or to see that there is one.
        if run.state == "PAUSED" and not _waits(rollout):
            orchestrator.finish(run.id, f"answered elsewhere: {_outcome(rollout)}")
            say(f"the question about {rollout.adapter} was answered elsewhere")
    asking = {str(run.parameters.get("rollout_id")) for run in going}
    for rollout in asked:
        if rollout.id not in asking:
            _ask(orchestrator, rollout, say)


class Settling:
    """``settle`` beside other work, which a Prefect that does not answer must not hold up."""

    def __init__(self, context: Context, say: Callable[[str], None]) -> None:
        self._context = context
        self._say = say
        self._thread: threading.Thread | None = None

    def ask(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """Begin, unless the last time still lasts, and wait no longer than that."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._settle, name="approvals", daemon=True)
            self._thread.start()
        self._thread.join(wait_seconds)

    def _settle(self) -> None:
        try:
            settle(self._context.orchestrator(), self._context.registry, self._say)
        except (OrchestratorDown, OrchestratorRefused) as error:
            # The other ways to answer remain, and it is tried again.
            self._say(f"approvals cannot be asked for in Prefect now: {error}")
        except Exception:
            logger.exception("approvals cannot be asked for now")


def _ask(orchestrator: Orchestrator, rollout: Rollout, say: Callable[[str], None]) -> None:
    parameters = {"rollout_id": rollout.id, "adapter": rollout.adapter}
    for number in range(1, MOST_RUNS + 1):
        run = orchestrator.start(
            FLOW, parameters, idempotency_key=f"{FLOW}:{rollout.id}:{_asked_at(rollout)}:{number}"
        )
        if not run.ended:
            say(f"{rollout.adapter} waits for approval: run {run.name}")
            return


def _asked_at(rollout: Rollout) -> str:
    """Tells two questions of one rollout apart: after a pause it has another deadline."""
    deadline: datetime = rollout.deadline
    return f"{deadline:%Y%m%dT%H%M%S}"


def _waits(rollout: Rollout) -> bool:
    return rollout.open and rollout.approval == "asked" and not rollout.paused


def _give(context: Context, rollout_id: str, answer: Answer) -> Rollout:
    try:
        return give_order(
            context.registry,
            rollout_id,
            "approve" if answer.promote else "abort",
            actor=ACTOR,
            why=answer.why,
            channels=tuple(context.channels),
        )
    except IllegalState as error:
        # Somebody else was faster, or it took too long: the rollout says how it stands.
        get_run_logger().warning("the answer came too late: %s", error)
        return context.registry.rollout(rollout_id)


def _outcome(rollout: Rollout) -> str:
    if rollout.open and rollout.approval == "given":
        return f"approved: {rollout.adapter} is promoted at the next look"
    return f"{rollout.adapter} is {rollout.state}: {rollout.reason}"


def _question(rollout: Rollout) -> str:
    lines: Iterable[str] = (
        f"**{rollout.adapter}** may become the champion of task `{rollout.task_id}`.",
        f"Why: {rollout.reason}",
        f"Without an answer by {rollout.deadline:%Y-%m-%d %H:%M} UTC the champion stays.",
        f"The same on the command line: `nightschool rollouts approve {rollout.id}`",
    )
    return "\n\n".join(lines)
