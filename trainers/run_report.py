"""How a run is seen from elsewhere: its last steps, its log's end, how many processes it has had.

Where the folder is on a disk that both see it is read there; a worker with a disk of its own leaves it
in object storage every few seconds, beside the checkpoints.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from infra.objects.store import ObjectStoreError
from trainers.run_folder import Progress, RunFolder, StoragePlace, progress_of, read_tail
from trainers.run_storage import storage_of

REPORT_SECONDS = 10.0
"""Between two reports of a worker that has a disk of its own, and between two looks at them."""
LOG_BYTES = 8 << 10
EVENTS = 40


@dataclass(frozen=True)
class Report:
    """What is known of a run that may be far away. Bounded in size."""

    progress: Progress
    processes: int = 0
    """Started for it since it was submitted."""
    notes: tuple[tuple[float, str], ...] = ()
    """(seconds since the epoch, what was noted), oldest first."""
    log: str = ""
    """The end of what its processes printed; what is no UTF-8 as surrogate escapes."""
    log_bytes: int = 0
    """Length of the whole log."""
    submitted: float = 0
    """Of the request that it tells of (``RunRequest``); what earlier ones printed and noted is left out."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Raises ValueError, KeyError or TypeError when it is none of this release's."""
        value: Mapping[str, Any] = json.loads(data)
        return cls(
            Progress(**value["progress"]),
            int(value["processes"]),
            tuple((float(time), str(text)) for time, text in value["notes"]),
            str(value["log"]),
            int(value["log_bytes"]),
            float(value.get("submitted", 0)),
        )


def report_of(run: RunFolder) -> Report:
    """The report of a run whose folder is on this machine."""
    events, attempts, submitted = (
        read_tail(run.events_file),
        run.attempts(),
        run.request().submitted,
    )
    notes = tuple(
        (float(e["time"]), str(e["note"])[:500])
        for e in events
        if "note" in e and float(e["time"]) >= submitted
    )
    log, size = "", 0
    with suppress(FileNotFoundError), run.log_file.open("rb") as stream:
        size = stream.seek(0, 2)
        before = int(attempts[0].get("log_bytes", 0)) if attempts else size
        stream.seek(max(before, size - LOG_BYTES))
        log = stream.read(LOG_BYTES).decode(errors="surrogateescape")
    progress = progress_of(events, run.spec().steps)
    return Report(progress, len(attempts), notes[-EVENTS:], log, size, submitted)


@contextmanager
def reporting(run: RunFolder, place: StoragePlace | None, run_id: str | None) -> Iterator[None]:
    """Leave the run's reports in its storage while the block runs, and once at its end.

    For a worker that may be elsewhere. A store that refuses them stops nothing.
    """
    if place is None or run_id is None:
        yield
        return
    done, storage = threading.Event(), None

    def leave() -> None:
        nonlocal storage
        # The folder may not be there yet, or have gone with its disk.
        with suppress(OSError, ValueError, ObjectStoreError):
            storage = storage or storage_of(place, run_id)
            if storage is not None:
                storage.push_report(report_of(run).to_json())

    def repeat() -> None:
        while not done.wait(REPORT_SECONDS):
            leave()

    thread = threading.Thread(target=repeat, daemon=True, name="run-report")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        leave()


def report_from_afar(place: StoragePlace | None, run_id: str | None) -> Report | None:
    """The last report of a worker that has a disk of its own; None where there is none to be had."""
    try:
        storage = storage_of(place, run_id)
        found = storage.report() if storage is not None else None
        return Report.from_json(found) if found else None
    except (ObjectStoreError, OSError, ValueError, KeyError, TypeError):
        return None
