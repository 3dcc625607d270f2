"""Tool calls against the right ones: each stage says how far they match. Order says nothing.

Parallel calls of one answer are compared as a multiset, and so are the calls of a session's steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from evaluators.normalizing import normalize
from infra.prompting.values import Message, calls_of, canonical, read_call

Call = tuple[str, dict[str, Any] | None]


def match_calls(
    expected: Message, got: Message | None, request: Mapping[str, Any]
) -> dict[str, float]:
    """The stages, each 0 to 1: called, parsed, name, keys, values, normalized.

    Args:
        expected: the right answer, with at least one call.
        got: the answer to judge; None when there was none.
        request: holds the tools, whose schemas say which values mean the same.
    """
    return match_steps([expected], [got], [request])


def match_steps(
    expected: Sequence[Message],
    got: Sequence[Message | None],
    requests: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """``match_calls`` over the steps of a session: all its calls together are one multiset.

    An agent that does the same in another order, or two things in one step, did the same.
    """
    wanted, given = (
        [read_call(call) for message in messages for call in calls_of(message)]
        for messages in (expected, got)
    )
    parsed = sum(arguments is not None for _, arguments in given) / len(given) if given else 0.0
    schemas: dict[str, Any] = {}
    for request in requests:
        schemas |= _schemas(request)
    return {
        "called": float(bool(given)),
        "parsed": parsed,
        "name": _overlap((name for name, _ in wanted), (name for name, _ in given)),
        "keys": _overlap(map(_keys, wanted), map(_keys, given)),
        "values": _overlap(map(_values, wanted), map(_values, given)),
        "normalized": _overlap(
            (_meaning(call, schemas) for call in wanted),
            (_meaning(call, schemas) for call in given),
        ),
    }


def _schemas(request: Mapping[str, Any]) -> dict[str, Any]:
    tools = request.get("tools")
    functions = [
        tool["function"]
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    ]
    return {str(item.get("name")): item.get("parameters") for item in functions}


def _keys(call: Call) -> Hashable:
    name, arguments = call
    return object() if arguments is None else (name, frozenset(arguments))


def _values(call: Call) -> Hashable:
    name, arguments = call
    return object() if arguments is None else (name, canonical(arguments))


def _meaning(call: Call, schemas: Mapping[str, Any]) -> Hashable:
    name, arguments = call
    if arguments is None:
        return object()
    return name, canonical(normalize(arguments, schemas.get(name)))


def _overlap(wanted: Iterable[Hashable], given: Iterable[Hashable]) -> float:
    """Share of calls that match as a multiset; a call too many costs as much as one too few."""
    right, said = Counter(wanted), Counter(given)
    return (right & said).total() / max(right.total(), said.total(), 1)
