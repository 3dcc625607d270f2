"""Read objects on a Ray cluster: a Ray Data pipeline whose rows are objects, each a block of its own.

Claims and commits stay with the one who drives it, so workers need the object store alone, with their own
keys as in training. A lost worker's object is read again by another (Ray's retries): the same files again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from typing import Any

from infra.objects.store import ObjectInfo, ObjectRefused, ObjectStore, ObjectStoreError
from infra.settings.learning import Ingest
from infra.settings.serving import Anonymizer
from infra.settings.sources import load_settings
from trainers.executors.on_ray import connect
from trainers.executors.protocol import Say
from trainers.ingest.taking import Here, StillOurs, Taken, WorkersLost
from trainers.run_folder import StoragePlace
from trainers.run_storage import open_place

logger = logging.getLogger(__name__)

WINDOW = 64
"""Objects claimed and committed together; another run finds the rest free."""


class OnRay:
    """Workers of a Ray cluster. See ``Workers``.

    Connects when the first object comes; ``close`` ends a Ray that it started itself.

    Args:
        address: of the cluster; None starts a Ray here with room for ``workers``.
        beat_seconds: how often the claims of what is being read are kept.
        read: in place of ``read_object``.
        say: hears that the cluster is waited for.
        ingest, anonymizer: what holds here holds for the workers too, whatever their own settings say.
    """

    def __init__(
        self,
        place: StoragePlace,
        ingest: Ingest,
        anonymizer: Anonymizer,
        max_object_bytes: int,
        *,
        address: str | None = None,
        workers: int = 1,
        beat_seconds: float = 60,
        read: Callable[..., dict[str, Any]] | None = None,
        say: Say = lambda _: None,
    ) -> None:
        self._how = {
            "place": place,
            "ingest": ingest,
            "anonymizer": anonymizer,
            "max_object_bytes": max_object_bytes,
        }
        self._address, self._workers, self._beat = address, workers, beat_seconds
        self._read, self._say = read or read_object, say
        self._owner = False

    def take(self, items: Iterable[ObjectInfo], still_ours: StillOurs) -> Iterator[Taken]:
        drawn = iter(items)
        while window := list(islice(drawn, WINDOW)):
            with self._kept(window, still_ours) as open_items:
                for taken in self._window(window):
                    open_items.discard(taken.item)
                    yield taken

    def close(self) -> None:
        if self._owner:
            import ray

            ray.shutdown()

    def _window(self, window: Sequence[ObjectInfo]) -> Iterator[Taken]:
        self._owner = connect(self._address, self._workers, 1, 0, self._say) or self._owner
        import ray
        from ray.exceptions import RayError

        rows = [{"item": json.dumps(asdict(item))} for item in window]
        # In a task, since Ray Data does not work through Ray's client (``ray://``).
        pipeline = ray.remote(_pipeline).options(name="ingest", num_cpus=0, max_retries=3)
        try:
            told: list[str] = ray.get(pipeline.remote(self._read, rows, self._how))
        except (RayError, ConnectionError) as error:
            first_line = str(error).strip().partition("\n")[0][:500]
            raise WorkersLost(
                f"Ray could not take the logs in ({type(error).__name__}: {first_line}): what is done is "
                "done, the rest is left for the next run; ingest.executor = local reads on this machine"
            ) from error
        for text in told:
            yield _taken(json.loads(text))

    @contextmanager
    def _kept(self, window: list[ObjectInfo], still_ours: StillOurs) -> Iterator[set[ObjectInfo]]:
        """Keeps the claims of those that are still in the set that it gives."""
        open_items, done = set(window), threading.Event()

        def beat() -> None:
            while not done.wait(self._beat):
                for item in tuple(open_items):
                    try:
                        still_ours(item)
                    except Exception as error:  # noqa: BLE001 - the next beat comes before it lapses
                        logger.warning("a claim could not be kept: %s", type(error).__name__)

        thread = threading.Thread(target=beat, name="claims", daemon=True)
        thread.start()
        try:
            yield open_items
        finally:
            done.set()
            thread.join()


def _pipeline(
    read: Callable[..., dict[str, Any]], rows: list[dict[str, Any]], how: dict[str, Any]
) -> list[str]:
    """What became of each object, in no order."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # A block for each, so that a lost worker takes one object with it.
    objects = ray.data.from_items(rows, override_num_blocks=len(rows))
    told = objects.map(read, fn_kwargs=how, num_cpus=1)
    return [row["told"] for row in told.iter_rows()]


def read_object(
    row: dict[str, Any],
    place: StoragePlace,
    ingest: Ingest,
    anonymizer: Anonymizer,
    max_object_bytes: int,
) -> dict[str, Any]:
    """On a worker: one object to its files; text in and out, so that no schema is guessed."""
    here = Here(_store(place), ingest, anonymizer, max_object_bytes)
    try:
        taken = here.one(ObjectInfo(**json.loads(row["item"])))
    except ObjectStoreError as error:
        refused = isinstance(error, ObjectRefused)
        return {"told": json.dumps({"store": str(error), "refused": refused})}
    told = {"item": asdict(taken.item), "counts": taken.counts, "problem": taken.problem}
    return {"told": json.dumps(told)}


@lru_cache(maxsize=4)
def _store(place: StoragePlace) -> ObjectStore:
    return open_place(place, load_settings().storage)


def _taken(told: dict[str, Any]) -> Taken:
    if "store" in told:
        raise (ObjectRefused if told["refused"] else ObjectStoreError)(told["store"])
    return Taken(ObjectInfo(**told["item"]), told["counts"], told["problem"])
