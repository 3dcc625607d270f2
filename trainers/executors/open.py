"""The executor that the settings name."""

from __future__ import annotations

from infra.settings.learning import Training
from trainers.executors.protocol import Executor


def open_executor(settings: Training) -> Executor:
    """``ray`` connects to ``ray_address`` or starts Ray here; ``local`` starts nothing yet.

    Raises:
        ExecutorLost: nobody answers at ``ray_address``, and did not for minutes.
        ExecutorError: Ray is not installed, or does not start here.
    """
    if settings.executor == "ray":
        from trainers.executors.on_ray import RayExecutor

        return RayExecutor(
            settings.ray_address,
            workers=settings.workers * settings.processes_per_run,
            cpus_per_run=settings.cpus_per_run,
            gpus_per_run=settings.gpus_per_run,
        )
    from trainers.executors.local import LocalExecutor

    return LocalExecutor(settings.workers)
