"""A night whose process died is done again, a bounded number of times: its steps are idempotent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from prefect import flow, get_run_logger
from prefect.events import DeploymentEventTrigger

from flows.orchestrator import Orchestrator, OrchestratorRefused, PastRun
from flows.stack.services import prefect_api_url
from infra.calls.record import utc_now
from infra.settings.sources import load_settings

TAKEN_OVER = ("night", "retrain")
"""What nobody else does again; the other flows come round by their schedules."""
MOST = 3
"""Takeovers of one run: what kills its process each time is not mended by a fourth."""
LOOK_BACK = timedelta(hours=2)
PREFIX = "takeover"

ON_CRASH = DeploymentEventTrigger(
    name="night school: take over crashed nights",
    expect={"prefect.flow-run.Crashed"},
    match={"prefect.resource.id": "prefect.flow-run.*"},
    match_related={
        "prefect.resource.role": "deployment",
        "prefect.resource.name": list(TAKEN_OVER),
    },
)
"""Whoever says that it crashed: its own runner, or the automation that misses its heartbeat."""


def successor(run: PastRun) -> str | None:
    """The idempotency key of the run that takes this one's work over; None when it was enough."""
    before, root = 0, run.id
    parts = run.idempotency_key.split(":")
    if len(parts) == 3 and parts[0] == PREFIX and parts[1].isdecimal():
        before, root = int(parts[1]), parts[2]
    return None if before >= MOST else f"{PREFIX}:{before + 1}:{root}"


def take_over(
    orchestrator: Orchestrator, now: datetime, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Start what crashed lately again, with its own parameters; ids of the runs that do it.

    However often and by however many it is called, each crash is taken over once. Raises
    OrchestratorDown, and OrchestratorRefused when the runs cannot be listed.
    """
    started: list[str] = []
    for run in orchestrator.crashed(TAKEN_OVER, now - LOOK_BACK):
        key = successor(run)
        if key is None:
            say(f"{run.name} crashed {MOST + 1} times and is left alone: see its logs")
            continue
        try:
            again = orchestrator.start(run.flow, run.parameters, idempotency_key=key)
        except OrchestratorRefused as error:
            # This release may no longer know a parameter; that must not keep back the others.
            say(f"{run.name} crashed and cannot be started again: {error}")
            continue
        say(f"{run.name} crashed; {again.name} does its work")
        started.append(again.id)
    return started


@flow(
    name="takeover",
    flow_run_name="take over crashed nights",
    retries=3,
    retry_delay_seconds=20,
    timeout_seconds=300,
)
def takeover() -> list[str]:
    """Do a night or a retraining again whose process died, at most three times each."""
    orchestrator = Orchestrator(prefect_api_url(load_settings()))
    return take_over(orchestrator, utc_now(), get_run_logger().info)
