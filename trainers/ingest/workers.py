"""The workers that the settings name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.settings.model import Settings
from trainers.executors.protocol import Say
from trainers.ingest.taking import Workers


@contextmanager
def open_workers(settings: Settings, say: Say = lambda _: None) -> Iterator[Workers | None]:
    """A Ray cluster's, by ``ingest.executor``; None: this process reads.

    Nothing is connected to before the first object comes. Raises ExecutorError then, when Ray is not
    installed or not there; ``say`` hears at once that it is waited for.
    """
    if not on_cluster(settings):
        yield None
        return
    from trainers.ingest.on_ray import OnRay
    from trainers.run_storage import place_of

    opened = OnRay(
        place_of(settings.storage),
        settings.ingest,
        settings.anonymizer,
        settings.storage.max_object_bytes,
        address=settings.training.ray_address,
        workers=settings.training.workers,
        beat_seconds=settings.ingest.claim_seconds / 4,
        say=say,
    )
    try:
        yield opened
    finally:
        opened.close()


def on_cluster(settings: Settings) -> bool:
    """Whether Ray reads: asked for, or a cluster is there and every machine of it reaches the store."""
    wanted, training = settings.ingest.executor, settings.training
    if wanted == "auto":
        shared = settings.storage.url.startswith("s3://")
        return shared and training.executor == "ray" and training.ray_address is not None
    return wanted == "ray"
