"""Serve every flow to Prefect from one process: ``python -m flows.serve``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.automations import Automation
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.runner import Runner
from prefect.states import StateType

from flows.approving import approval
from flows.night import night
from flows.orchestrator import Orchestrator
from flows.schedules import keep_changes, remember
from flows.stack.services import HEARTBEAT_SECONDS, prefect_api_url
from flows.takeover import ON_CRASH, take_over, takeover
from flows.upkeep import housekeeping, ingest, retrain, rollback, rollout, watch
from infra.calls.record import utc_now
from infra.settings.model import Settings
from infra.settings.sources import load_settings

MAX_RUNS = 10
"""More than a night, one that waits behind it, the tending run and some short ones."""
ZOMBIES = "night school: runs without a heartbeat have crashed"
STILLBORN = "night school: runs that gave no sign of life have crashed"
BEGIN_SECONDS = 900.0
"""From asking for a process to its first heartbeat: a cluster may have to fetch an image first."""
MISSED_HEARTBEATS = 6
"""So many in a row missing make a run a zombie; a busy machine delays one or two."""
RESTS = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")
"""States without a process, which say no heartbeat is to come."""
WAITS = ("Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Late")
"""States that a run goes back to from Pending: it has no process yet."""
ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)
ONE_AFTER_ANOTHER = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
)
ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
"""What intervals are counted from: fixed, so that the same default is the same after a restart."""


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """Every flow as a deployment of its own name."""
    nightly = CronSchedule(cron=settings.night.cron, timezone=settings.night.timezone)
    made = [
        night.to_deployment(
            "night", schedules=[nightly], concurrency_limit=ONE_AT_A_TIME, tags=_tags("learning")
        ),
        ingest.to_deployment(
            "ingest",
            schedules=[_every(minutes=15)],
            concurrency_limit=ONE_AT_A_TIME,
            tags=_tags("learning"),
        ),
        rollout.to_deployment(
            "rollout",
            schedules=[_every(minutes=10)],
            concurrency_limit=ONE_AT_A_TIME,
            tags=_tags("rollouts"),
        ),
        watch.to_deployment(
            "watch",
            schedules=[_every(hours=1)],
            concurrency_limit=ONE_AT_A_TIME,
            tags=_tags("upkeep"),
        ),
        housekeeping.to_deployment(
            "housekeeping",
            schedules=[_every(days=1)],
            concurrency_limit=ONE_AT_A_TIME,
            tags=_tags("upkeep"),
        ),
        retrain.to_deployment(
            "retrain", concurrency_limit=ONE_AFTER_ANOTHER, tags=_tags("learning")
        ),
        rollback.to_deployment("rollback", tags=_tags("rollouts")),
        approval.to_deployment("approval", tags=_tags("rollouts")),
        takeover.to_deployment("takeover", triggers=[ON_CRASH], tags=_tags("upkeep")),
    ]
    # Inside a running event loop Prefect would hand out coroutines; here there is none.
    return [deployment for deployment in made if isinstance(deployment, RunnerDeployment)]


def watch_for_zombies(begin_seconds: float = BEGIN_SECONDS) -> None:
    """A run whose process died without a word is marked crashed, once its heartbeat is missed; one of
    ours that died before its first, after ``begin_seconds``.

    An automation of that name that is there already gets this release's trigger and actions, if it has
    others; one that somebody turned off stays off.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    ends = {heartbeat, *(f"prefect.flow-run.{state}" for state in RESTS)}
    every_run = {"prefect.resource.id": ["prefect.flow-run.*"]}
    _keep(
        ZOMBIES,
        EventTrigger(
            after={heartbeat},
            expect=ends,
            match=every_run,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * HEARTBEAT_SECONDS),
        ),
        "no heartbeat",
    )
    _keep(
        STILLBORN,
        EventTrigger(
            after={"prefect.flow-run.Pending", "prefect.flow-run.Running"},
            expect=ends | {f"prefect.flow-run.{state}" for state in WAITS},
            match=every_run,
            # Others' flows in the same server may send no heartbeats.
            match_related={
                "prefect.resource.role": ["tag"],
                "prefect.resource.id": ["prefect.tag.nightschool"],
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=begin_seconds),
        ),
        "it never gave a sign of life",
    )


def _keep(name: str, trigger: EventTrigger, message: str) -> None:
    actions = [ChangeFlowRunState(state=StateType.CRASHED, message=message)]
    try:
        there = Automation.read(name=name)
    except (ValueError, ObjectNotFound):
        Automation(name=name, trigger=trigger, actions=actions).create()
        return
    assert isinstance(there, Automation)
    if _plain(there.trigger) == _plain(trigger) and _done(there.actions) == _done(actions):
        # An update makes Prefect forget which runs it was watching: those that died with whoever
        # served them, who is just starting again, would never be missed.
        return
    there.trigger, there.actions = trigger, list(actions)
    there.update()


def _plain(trigger: Any) -> dict[str, Any]:
    """What two triggers have to have in common to be the same; one of the server's has an id of its own."""
    body: dict[str, Any] = trigger.model_dump(mode="json", exclude={"id"})
    for name in ("after", "expect", "for_each"):
        body[name] = sorted(body[name])
    for name in ("match", "match_related"):
        body[name] = {
            label: [value] if isinstance(value, str) else value
            for label, value in body[name].items()
        }
    return body


def _done(actions: Sequence[Any]) -> list[dict[str, Any]]:
    return [action.model_dump(mode="json") for action in actions]


def register(runner: Runner, settings: Settings) -> None:
    """Register every deployment with what people changed of it."""
    made = deployments(settings)
    defaults = keep_changes(made)
    for deployment in made:
        runner.add_deployment(deployment)
    remember(defaults)


def _tags(kind: str) -> list[str]:
    return ["nightschool", kind]


def _every(**interval: int) -> IntervalSchedule:
    return IntervalSchedule(interval=timedelta(**interval), anchor_date=ANCHOR)


def main() -> None:
    watch_for_zombies()
    # Pausing what is scheduled at every stop would look like somebody's wish at the next start.
    runner = Runner(pause_on_shutdown=False, limit=MAX_RUNS)
    settings = load_settings()
    register(runner, settings)
    # What crashed while nobody served: its event may have found no deployment to start.
    take_over(Orchestrator(prefect_api_url(settings)), utc_now(), print)
    with contextlib.suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(runner.start())


if __name__ == "__main__":
    main()
