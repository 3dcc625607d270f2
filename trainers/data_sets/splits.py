"""Train, validation and test by whole sessions, the newest in test. Pure and deterministic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, TypeVar

from infra.prompting.template import PromptFormat, compact_json, content_text
from infra.tasks.signature import items, role_of
from trainers.data_sets.labels import Example

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.2

E = TypeVar("E", bound=Example)


def split_by_session(examples: Sequence[E]) -> dict[SplitName, list[E]]:
    """Oldest 65 % of the sessions to train, the next 15 % to validation, the newest 20 % to test.

    Validation is where the confidence threshold is certified, which takes rows (see
    ``evaluators.calibration``).

    A session is as old as its newest call, so that nothing in test is older than training's last
    session began to end. From three sessions on every split has one; two make train and test.
    """
    sessions: defaultdict[str, list[E]] = defaultdict(list)
    for example in examples:
        sessions[example.session].append(example)
    order = sorted(sessions, key=lambda name: (max(e.time for e in sessions[name]), name))
    count = len(order)
    test = max(1, round(count * TEST_SHARE)) if count >= 2 else 0
    validation = max(1, round(count * VALIDATION_SHARE)) if count >= 3 else 0
    train = count - test - validation
    bounds = {"train": (0, train), "validation": (train, train + validation)}
    bounds["test"] = (train + validation, count)
    return {
        name: sorted(
            (e for session in order[slice(*bounds[name])] for e in sessions[session]),
            key=lambda e: (e.time, e.call_id),
        )
        for name in SPLITS
    }


def prompt_format(examples: Sequence[Example]) -> PromptFormat:
    """What the prompt may leave out: the parts that are there and the same in every example.

    A part that no example has is *not* dropped: should a call bring one (a tag can route it here),
    the model must see that it is different.
    """
    systems = {_system(example) for example in examples}
    tools = {compact_json(example.request.get("tools") or []) for example in examples}
    forms = {compact_json(example.request.get("response_format")) for example in examples}
    return PromptFormat(
        drop_system=_constant(systems, ""),
        drop_tools=_constant(tools, "[]"),
        drop_response_format=_constant(forms, "null"),
    )


def _constant(values: set[str], nothing: str) -> bool:
    return len(values) == 1 and values != {nothing}


def _system(example: Example) -> str:
    return "\n".join(
        content_text(message.get("content"))
        for message in items(example.request.get("messages"))
        if role_of(message) in ("system", "developer")
    )
