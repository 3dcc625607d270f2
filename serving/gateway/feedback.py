"""What callers report about an answer later: joined to its call, anonymized like it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infra.anonymize.anonymizer import Anonymizer, Scope
from infra.calls.codec import StoredLine, stored
from infra.calls.record import FeedbackRecord
from serving.gateway.problems import GatewayError, bad_request
from serving.gateway.scopes import Scopes

MAX_CALLS = 100_000
MAX_LABEL_CHARACTERS = 256
_COMPLETION_PREFIX = "chatcmpl-"


class KnownCall(NamedTuple):
    call_id: str
    session: str


class CallIndex:
    """The last calls, by their id and by their response's id, per tenant. Bounded, thread-safe."""

    def __init__(self, most: int = MAX_CALLS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._calls: OrderedDict[tuple[str, str], KnownCall] = OrderedDict()

    def add(self, tenant: str, call_id: str, session: str, response_id: object) -> None:
        call = KnownCall(call_id, session)
        with self._lock:
            self._calls[tenant, call_id] = call
            if isinstance(response_id, str) and len(response_id) <= 128:
                self._calls[tenant, response_id] = call
            while len(self._calls) > self._most:
                self._calls.popitem(last=False)

    def find(self, tenant: str, given: str) -> KnownCall | None:
        with self._lock:
            return self._calls.get((tenant, given))


def read_feedback(
    body: Mapping[str, Any], tenant: str, calls: CallIndex
) -> tuple[FeedbackRecord, KnownCall | None]:
    """The record that a feedback body becomes, not anonymized yet, and its call where it is known.

    Raises GatewayError: 400 for a field out of bounds, 404 for a response id that this gateway does
    not remember (call ids are always taken).
    """
    given = body.get("call_id") or body.get("id")
    if not isinstance(given, str) or not 1 <= len(given) <= 128:
        raise bad_request("'call_id' must be the id from the x-nightschool-call-id header")
    call = calls.find(tenant, given)
    call_id = call.call_id if call else given.removeprefix(_COMPLETION_PREFIX)
    if call is None and not _is_call_id(call_id):
        raise GatewayError(
            404,
            "no recent call has this response id: send the call's x-nightschool-call-id instead",
            code="call_not_found",
        )
    score, label, correction = body.get("score"), body.get("label"), body.get("correction")
    if score is not None and (
        isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1
    ):
        raise bad_request("'score' must be a number from 0 to 1")
    if label is not None and not (isinstance(label, str) and len(label) <= MAX_LABEL_CHARACTERS):
        raise bad_request(f"'label' must be text of at most {MAX_LABEL_CHARACTERS} characters")
    if isinstance(correction, str):
        correction = {"role": "assistant", "content": correction}
    if correction is not None:
        _check_correction(correction)
    if score is None and label is None and correction is None:
        raise bad_request("feedback needs a score, a label or a correction")
    record = FeedbackRecord(
        tenant=tenant, call_id=call_id, score=score, label=label, correction=correction
    )
    return record, call


def anonymized(
    record: FeedbackRecord,
    call: KnownCall | None,
    scopes: Scopes[Scope],
    anonymizer: Anonymizer,
) -> Callable[[], StoredLine]:
    """Makes the record that may be stored.

    A correction becomes a training label, so its placeholders must be those of its call. Where the
    session's scope is gone, a correction with personal data is left out; the rest is kept.
    """
    scope = scopes.peek(record.tenant, call.session) if call is not None else None

    def make() -> StoredLine:
        if scope is not None:
            return stored(scope.record(record))
        return stored(without_session(record, anonymizer))

    return make


def without_session(record: FeedbackRecord, anonymizer: Anonymizer) -> FeedbackRecord:
    """Anonymized where the placeholders of its call are not known: see ``anonymized``."""
    changed = anonymizer.scope().record(record)
    if changed.correction != record.correction:
        changed = changed.model_copy(update={"correction": None})
    return changed


def _check_correction(correction: Any) -> None:
    problem = bad_request(
        "'correction' must be the assistant message that would have been right: "
        "text, or an object with 'content' or 'tool_calls'"
    )
    if not isinstance(correction, dict) or correction.get("role", "assistant") != "assistant":
        raise problem
    content, calls = correction.get("content"), correction.get("tool_calls")
    if not isinstance(content, (str, type(None))) or (content is None and not calls):
        raise problem
    if calls is not None and not (
        isinstance(calls, list)
        and all(
            isinstance(call, dict)
            and isinstance(call.get("function"), dict)
            and isinstance(call["function"].get("name"), str)
            and isinstance(call["function"].get("arguments"), str)
            for call in calls
        )
    ):
        raise problem


def _is_call_id(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4 and text.replace("-", "").isalnum()
