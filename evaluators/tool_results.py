"""Did a tool call end in an error? Known only when the agent says so; silence is no error.

Two ways to say it. The agent goes on with the session, and the next request carries the result as a
message of role ``tool`` that names the call (``tool_call_id``): a JSON object with a truthy ``error``,
``is_error`` or ``isError``, or a ``status`` of ``error``, is a failure. Or it sends feedback with the
label ``tool_error``. Free text is not interpreted: a tool may well return a text about errors.

A tool can fail through no fault of the model. That is no bias, for it happens to both arms alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.calls.record import CallRecord, FeedbackRecord
from infra.calls.tool_results import TOOL_ERROR, is_error, tool_call_ids


def tool_error_reported(
    calls: Sequence[CallRecord], feedback: Mapping[str, Sequence[FeedbackRecord]]
) -> bool:
    """Whether an error was reported for an answer of one of these calls of one session.

    Args:
        calls: the calls whose answers count, with the later ones that carry the results.
        feedback: per call id, what came in time.
    """
    for call in calls:
        if any(item.label == TOOL_ERROR for item in feedback.get(call.id, ())):
            return True
    asked = {name for call in calls for name in tool_call_ids(call.answer)}
    return any(
        message.get("role") == "tool"
        and message.get("tool_call_id") in asked
        and is_error(message.get("content"))
        for call in calls
        for message in call.messages
        if isinstance(message, Mapping)
    )
