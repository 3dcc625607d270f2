"""The records a rollout's step was decided on, kept as one immutable object.

Logs are thrown away in time; a verdict must be explained for longer. So with every step taken the
records that it rests on are kept under their own digest, without the prompts where the verdict is the
same without them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

from evaluators.sessions import unique_calls
from infra.calls.codec import Problem, encode_lines, parse_line, read_lines
from infra.calls.record import CallRecord, FeedbackRecord
from infra.database.events import list_events, record_event
from infra.database.open import Database
from infra.objects.store import ObjectExists, ObjectStore

PREFIX = "evidence/rollouts/"
"""Not among the reports: those are shown to whoever has their address, and these are calls."""
JUDGED_PREFIX = "evidence/judged/"
"""The judge's words and verdicts; see ``judged_evidence``."""
FORGOTTEN = "evidence.forgotten"
"""The event of a rollout that says under which name its records lie without somebody's."""
LOGS_FORGOT = "logs.forgot"
"""The event that says when logs were rid of somebody: what was read before must not be kept after."""
MAX_BYTES = 256 << 20
MAX_LINE_BYTES = 64 << 20


class EvidenceDamaged(Exception):
    """What is kept is not what was kept; the message says which object."""


Records = tuple[list[CallRecord], list[FeedbackRecord]]


def keep(
    store: ObjectStore,
    rollout_id: str,
    calls: Iterable[CallRecord],
    feedback: Iterable[FeedbackRecord],
    same: Callable[[Sequence[CallRecord]], bool],
) -> dict[str, Any]:
    """Keep them; what a replay must know to find them again.

    Args:
        same: whether records without their prompts give the same view of the rollout.

    Raises ObjectStoreError.
    """
    found = unique_calls(calls)
    light = [_without_prompt(call) for call in found]
    if same(light):
        found = light
    named = {(call.tenant, call.id) for call in found}
    reports = {item.id: item for item in feedback if (item.tenant, item.call_id) in named}
    ordered = sorted(reports.values(), key=lambda item: (item.time, item.id))
    data = encode_lines([*found, *ordered])
    if len(data) > MAX_BYTES:
        return {"left_out": f"{len(data)} bytes, more than {MAX_BYTES}: replayed from the logs"}
    digest = hashlib.sha256(data).hexdigest()
    key = f"{PREFIX}{rollout_id}/{digest}.jsonl.zst"
    with contextlib.suppress(ObjectExists):  # named by its digest: the same bytes
        store.create(key, data)
    return {"object": key, "calls": len(found), "feedback": len(ordered)}


def note_logs_forgot(database: Database, now: datetime) -> None:
    """Say that the logs are rid of somebody. Evidence that is there by now, the caller still takes."""
    with database.begin() as connection:
        record_event(
            connection, actor="forget", what=LOGS_FORGOT, subject="logs", why="erasure", time=now
        )


def last_forgetting(database: Database) -> int:
    """Changes whenever the logs were rid of somebody."""
    with database.read() as connection:
        last = list_events(connection, subject="logs", what=LOGS_FORGOT, limit=1, newest_first=True)
    return last[0].id if last else 0


def read_kept(store: ObjectStore, key: str) -> Records:
    """Raises ObjectMissing, EvidenceDamaged."""
    data = store.get(key)
    digest = hashlib.sha256(data).hexdigest()
    if f"/{digest}." not in key:
        raise EvidenceDamaged(f"{key} holds other bytes than its name says: sha256 {digest}")
    calls: list[CallRecord] = []
    feedback: list[FeedbackRecord] = []
    for _, line in read_lines(BytesIO(data), MAX_LINE_BYTES):
        if isinstance(line, Problem):
            raise EvidenceDamaged(f"{key}: {line.reason}")
        record = parse_line(line)
        if isinstance(record, FeedbackRecord):
            feedback.append(record)
        else:
            calls.append(record)
    return calls, feedback


def expire(store: ObjectStore, rollout_id: str, *, dry_run: bool) -> int:
    """Delete what is kept of one rollout, the judge's words too; how many objects. Safe to repeat."""
    keys = [
        item.key
        for prefix in (PREFIX, JUDGED_PREFIX)
        for item in store.list(f"{prefix}{rollout_id}/")
    ]
    if not dry_run:
        for key in keys:
            store.delete(key)
    return len(keys)


def _without_prompt(call: CallRecord) -> CallRecord:
    request = {name: value for name, value in call.request.items() if name != "messages"}
    return call.model_copy(update={"request": request})
