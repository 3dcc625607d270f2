"""Golden cases: prompts whose right answer a person pinned. No adapter may lose one; none is trained on.

A case is an immutable object ``golden/<task>/<id>.json``, its id made from the prompt, so that a prompt
has one right answer. Pinning and taking away are each an effect in the store and an event in the
database; the same again adds whichever of them a killed process left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from infra.anonymize.anonymizer import Anonymizer, RecordDropped
from infra.calls.finding import find_call
from infra.calls.record import utc_now
from infra.database.events import list_events, record_event
from infra.database.open import Database
from infra.objects.store import ObjectExists, ObjectMissing, ObjectStore
from infra.prompting.answers import check_answer
from infra.prompting.template import render_answer, render_prompt
from infra.settings.model import Settings
from trainers.data_sets.labels import Example, Label, answer_key, label_of, own, prompt_key
from trainers.ingest.reading import feedback_files, read_feedback

MAX_CASES = 200
MAX_BYTES = 1 << 20
ADDED, REMOVED = "golden.added", "golden.removed"


class GoldenError(Exception):
    """The case cannot be pinned or found; the message says why and what to do."""


class GoldenMissing(GoldenError):
    """No golden case has that id."""


@dataclass(frozen=True)
class GoldenCase:
    id: str
    task_id: str
    request: dict[str, Any]
    """OpenAI request, anonymized."""
    answer: dict[str, Any]
    """The right OpenAI assistant message, anonymized."""
    least: float
    """Least score, above 0 to 1, that counts as right; below 1 only makes sense for free text."""
    call_id: str | None
    why: str
    by: str
    added: datetime

    @property
    def key(self) -> str:
        return f"golden/{self.task_id}/{self.id}.json"

    def example(self) -> Example:
        """As something to be asked; each case is a session of its own."""
        session = f"golden/{self.id}"
        return Example(
            self.id, session, self.added, self.request, self.answer, 1.0, "correction", ""
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "added": self.added.isoformat()}

    @classmethod
    def from_json(cls, data: bytes) -> GoldenCase:
        value = json.loads(data)
        return cls(**{**value, "added": datetime.fromisoformat(value["added"])})


def case_from_call(
    store: ObjectStore,
    database: Database,
    task_id: str,
    call_id: str,
    *,
    answer: Mapping[str, Any] | None = None,
    least: float = 1.0,
    why: str,
    by: str,
) -> GoldenCase:
    """A case from a logged call; its answer is the one that it would teach, unless one is given.

    Raises:
        CallNotFound: there is no such call.
        GoldenError: the call has no answer of the teacher's or a person's, or a broken one.
    """
    record = find_call(store, call_id).record
    if answer is None:
        said = read_feedback(store, feedback_files(database), [record.id])
        label = label_of(record, own(record, said.get(record.id, ())))
        if not isinstance(label, Label):
            raise GoldenError(
                f"call {record.id} has no right answer ({label}): give one with --answer FILE"
            )
        answer = label.answer
    return make_case(
        task_id, record.request, answer, call_id=record.id, least=least, why=why, by=by
    )


def case_from_json(
    settings: Settings, task_id: str, data: bytes, *, least: float = 1.0, why: str, by: str
) -> GoldenCase:
    """A case from ``{"request": {...}, "answer": {...}}``, anonymized as a call of one session.

    Raises GoldenError.
    """
    value = read_object(data)
    parts = {name: value.get(name) for name in ("request", "answer")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise GoldenError(
            'a golden case is {"request": {"messages": [...]}, "answer": {"content": "..."}}'
        )
    if settings.anonymizer.enabled:
        anonymizer = Anonymizer(settings.anonymizer)
        scope = anonymizer.scope()
        parts = scope.value(parts)
        try:
            anonymizer.rules.may_store(scope.counts)
        except RecordDropped as dropped:
            raise GoldenError(f"{dropped} ([anonymizer] kinds)") from None
    return make_case(
        task_id, parts["request"] or {}, parts["answer"] or {}, least=least, why=why, by=by
    )


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object of bounded size. Raises GoldenError."""
    if len(data) > MAX_BYTES:
        raise GoldenError(f"the file has more than {MAX_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GoldenError(f"the file is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GoldenError("the file holds no JSON object")
    return value


def make_case(
    task_id: str,
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    call_id: str | None = None,
    least: float = 1.0,
    why: str,
    by: str,
) -> GoldenCase:
    """A case whose prompt can be asked and whose answer serving would show. Raises GoldenError."""
    if not 0 < least <= 1:
        raise GoldenError(
            f"the least score of a right answer is above 0 and at most 1, not {least}"
        )
    try:
        sound = bool(render_prompt(request)) and bool(render_answer(answer).strip())
        checks = check_answer(dict(answer), request)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GoldenError(f"request or answer is not of OpenAI's shape: {error}") from None
    if not request.get("messages") or not sound:
        raise GoldenError("a golden case needs messages to ask and an answer that is not empty")
    if not checks.passed:
        raise GoldenError(f"the answer fails the checks of serving itself: {checks.reason}")
    return GoldenCase(
        prompt_key(request)[:32],
        task_id,
        dict(request),
        {"role": "assistant", **answer},
        least,
        call_id,
        why,
        by,
        utc_now(),
    )


def pin(store: ObjectStore, database: Database, case: GoldenCase) -> GoldenCase:
    """Keep the case; the same prompt with the same answer again is the case that is there.

    Raises:
        GoldenError: its prompt is pinned with another answer, or the task has ``MAX_CASES``.
    """
    data = json.dumps(case.to_dict(), ensure_ascii=False, indent=1).encode("utf-8", "replace")
    if len(data) > MAX_BYTES:
        raise GoldenError(f"the case has more than {MAX_BYTES} bytes")
    others = [found for found in golden_cases(store, case.task_id) if found.id != case.id]
    if len(others) >= MAX_CASES:
        raise GoldenError(f"{case.task_id} has {MAX_CASES} golden cases, the most: remove one")
    try:
        store.create(case.key, data)
    except ObjectExists:
        kept = GoldenCase.from_json(store.get(case.key))
        if (answer_key(kept.answer), kept.least) != (answer_key(case.answer), case.least):
            raise GoldenError(
                f"the prompt is pinned with another answer as {case.id}: remove that first"
            ) from None
        case = kept
    _record(database, case.task_id, case.id, ADDED, case.by, case.why)
    return case


def take_away(
    store: ObjectStore, database: Database, task_id: str, case_id: str, *, why: str, by: str
) -> None:
    """Remove a case. Raises GoldenMissing when the task never had it."""
    key = f"golden/{task_id}/{case_id}.json"
    if "/" in case_id or (
        not _exists(store, key) and _last_event(database, task_id, case_id) is None
    ):
        raise GoldenMissing(
            f"{task_id} has no golden case {case_id!r}: `nightschool golden list` shows them"
        )
    store.delete(key)
    _record(database, task_id, case_id, REMOVED, by, why)


def golden_cases(store: ObjectStore, task_id: str | None = None) -> list[GoldenCase]:
    """The cases of a task, or of all, by id."""
    prefix = "golden/" if task_id is None else f"golden/{task_id}/"
    found = []
    for item in store.list(prefix):
        try:
            found.append(GoldenCase.from_json(store.get(item.key)))
        except ObjectMissing:
            continue  # taken away since it was listed
    return found


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        store.info(key)
    except ObjectMissing:
        return False
    return True


def _record(
    database: Database, task_id: str, case_id: str, what: str, actor: str, why: str
) -> None:
    """The event, unless it is the last word on this case already."""
    if _last_event(database, task_id, case_id) == what:
        return
    with database.begin() as connection:
        record_event(
            connection, actor=actor, what=what, subject=task_id, why=why, evidence={"id": case_id}
        )


def _last_event(database: Database, task_id: str, case_id: str) -> str | None:
    with database.read() as connection:
        found = [
            event
            for what in (ADDED, REMOVED)
            for event in list_events(
                connection, subject=task_id, what=what, limit=10_000, newest_first=True
            )
            if event.evidence.get("id") == case_id
        ]
    return max(found, key=lambda event: event.id).what if found else None
