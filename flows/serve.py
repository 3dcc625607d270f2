"""Serve every flow to Prefect from one process: ``python -m flows.serve``."""

from __future__ import annotations

from datetime import timedelta

from prefect import serve
from prefect.automations import Automation
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.states import StateType

from flows.night import night
from flows.stack.services import HEARTBEAT_SECONDS
from flows.upkeep import housekeeping, ingest, retrain, rollback, rollout, watch
from infra.settings.model import Settings
from infra.settings.sources import load_settings

MAX_RUNS = 4
ZOMBIES = "night school: runs without a heartbeat have crashed"
MISSED_HEARTBEATS = 6
"""So many in a row missing make a run a zombie; a busy machine delays one or two."""
ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """Every flow as a deployment of its own name."""
    nightly = CronSchedule(cron=settings.night.cron, timezone=settings.night.timezone)
    made = [
        night.to_deployment(
            "night", schedules=[nightly], concurrency_limit=ONE_AT_A_TIME, tags=["night"]
        ),
        ingest.to_deployment(
            "ingest", schedules=[_every(minutes=15)], concurrency_limit=ONE_AT_A_TIME
        ),
        rollout.to_deployment(
            "rollout", schedules=[_every(minutes=10)], concurrency_limit=ONE_AT_A_TIME
        ),
        watch.to_deployment("watch", schedules=[_every(hours=1)], concurrency_limit=ONE_AT_A_TIME),
        housekeeping.to_deployment(
            "housekeeping", schedules=[_every(days=1)], concurrency_limit=ONE_AT_A_TIME
        ),
        retrain.to_deployment("retrain", tags=["night"]),
        rollback.to_deployment("rollback"),
    ]
    # Inside a running event loop Prefect would hand out coroutines; here there is none.
    return [deployment for deployment in made if isinstance(deployment, RunnerDeployment)]


def watch_for_zombies() -> None:
    """A run whose process died without a word is marked crashed, once its heartbeat is missed."""
    heartbeat = "prefect.flow-run.heartbeat"
    ends = {
        f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")
    }
    automation = Automation(
        name=ZOMBIES,
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *ends},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * HEARTBEAT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat")],
    )
    try:
        Automation.read(name=ZOMBIES)  # type: ignore[unused-coroutine]
    except (ValueError, ObjectNotFound):
        automation.create()


def _every(**interval: int) -> IntervalSchedule:
    return IntervalSchedule(interval=timedelta(**interval))


def main() -> None:
    watch_for_zombies()
    serve(*deployments(load_settings()), limit=MAX_RUNS, print_starting_message=False)


if __name__ == "__main__":
    main()
