"""One night in this process, which kills itself (-9) at a chosen effect, or loses its machines.

``python -m tests.journeys.driver [STAGE]``; without a stage the night runs to its end. Settings come
from the environment, as in production.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from flows import holding, judging
from infra.objects.directory import DirectoryStore
from serving.registry.registry import Registry
from trainers.data_sets import freeze
from trainers.discover import discover
from trainers.executors.local import LocalExecutor
from trainers.executors.protocol import ExecutorAway, ExecutorLost, RunHandle, TrainJob
from trainers.ingest import claims

LEASE_SECONDS = 2.0
"""A killed night's leases run out in this time, so that the next one need not wait long."""
OVERRIDE = "a model of random weights passes no gate"


def die_before(owner: Any, name: str, *, call: int = 1, about: Callable[..., bool] | None = None):
    """Kill this process when ``owner.name`` is about to be called for the ``call``-th time.

    Args:
        about: counts only the calls whose arguments it holds for.
    """
    real, seen = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if about is None or about(*args, **kwargs):
            seen += 1
            if seen == call:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def die_after(owner: Any, name: str) -> None:
    """Kill this process when ``owner.name`` has done its work and not yet told its caller."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, wrapped)


def _adapter_manifest(store: DirectoryStore, key: str, data: bytes) -> bool:
    return key.startswith("adapters/") and key.endswith("manifest.json")


def lose_the_machines() -> None:
    """Whoever trains is gone when it is asked."""

    def submit(self: LocalExecutor, job: TrainJob) -> RunHandle:
        raise ExecutorLost("its cluster is gone")

    LocalExecutor.submit = submit


def miss_the_machines() -> None:
    """Whoever trains does not answer at all."""

    def connect(self: LocalExecutor, workers: int) -> None:
        raise ExecutorAway("nobody answers")

    LocalExecutor.__init__ = connect


STAGES: dict[str, Callable[[], None]] = {
    "ingest": lambda: die_before(claims, "commit", call=2),
    "discover": lambda: die_before(discover, "_commit"),
    "freeze": lambda: die_before(freeze, "register"),
    "machines": lose_the_machines,
    "no machines": miss_the_machines,
    "judge": lambda: die_before(judging, "replay", call=2),
    "publish": lambda: die_before(DirectoryStore, "create", about=_adapter_manifest),
    "register": lambda: die_before(Registry, "register_adapter"),
    "scorecard": lambda: die_before(Registry, "record_scorecard"),
    "open": lambda: die_before(Registry, "open_rollout"),
    "opened": lambda: die_after(Registry, "open_rollout"),
}


def main(arguments: list[str]) -> None:
    from flows.night import night
    from flows.upkeep import retrain

    holding.TTL_SECONDS = LEASE_SECONDS
    for stage in arguments:
        STAGES[stage]()
    if any("machines" in stage for stage in arguments):
        retrain(task="", reason="journey")
    # Nothing written into Prefect's form is an empty text.
    night(reason=f"journey {arguments}", only="", by_hand=True, gate_override=OVERRIDE)


if __name__ == "__main__":
    main(sys.argv[1:])
