"""The executor that the settings name."""

from __future__ import annotations

from infra.settings.learning import Training
from trainers.executors.protocol import Executor, Say


def open_executor(settings: Training, say: Say = lambda _: None) -> Executor:
    """``ray`` connects to ``ray_address`` or starts Ray here; ``local`` starts nothing yet.

    Args:
        say: hears at once that nobody answers at ``ray_address``, and until when it is waited for.

    Raises:
        ExecutorAway: nobody did.
        ExecutorError: Ray is not installed, or does not start here.
    """
    if settings.executor == "ray":
        from trainers.executors.on_ray import RayExecutor

        return RayExecutor(
            settings.ray_address,
            workers=settings.workers * settings.processes_per_run,
            cpus_per_run=settings.cpus_per_run,
            gpus_per_run=settings.gpus_per_run,
            say=say,
        )
    from trainers.executors.local import LocalExecutor

    return LocalExecutor(settings.workers)
