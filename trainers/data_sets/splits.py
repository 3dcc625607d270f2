"""Train, validation and test by whole sessions, the newest in test, no near copy in two of them.

Pure and deterministic.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeVar

from infra.prompting.template import PromptFormat, compact_json, content_text
from infra.tasks.signature import items, role_of
from trainers.data_sets.labels import Example

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.2
_WORTH: tuple[SplitName, ...] = ("train", "test", "validation")
"""Whose loss matters first where nothing else decides."""

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


def separated(
    splits: Mapping[SplitName, Sequence[E]], leaders: Mapping[str, str]
) -> tuple[dict[SplitName, list[E]], Counter[str]]:
    """The splits without what ties one to another, and how many rows that took, by reason.

    No row of test is older than one of train: sessions that run side by side lose rows on both sides
    of the moment at which the larger of the two shares lost is smallest. Then each group of near copies
    stays in one split, the one that has kept least of what it had, and leaves the others.

    Args:
        leaders: call id to the call that it nearly repeats (or itself).
    """
    lost: Counter[str] = Counter()
    kept = {name: list(splits[name]) for name in SPLITS}
    moment = _moment([e.time for e in kept["train"]], [e.time for e in kept["test"]])
    if moment is not None:
        before = len(kept["train"]) + len(kept["test"])
        kept["train"] = [e for e in kept["train"] if e.time <= moment]
        kept["test"] = [e for e in kept["test"] if e.time >= moment]
        lost["out-of-time"] = before - len(kept["train"]) - len(kept["test"])
    rows: defaultdict[str, Counter[SplitName]] = defaultdict(Counter)
    for name in SPLITS:
        for example in kept[name]:
            rows[leaders[example.call_id]][name] += 1
    had = {name: len(kept[name]) for name in SPLITS}
    stays = dict.fromkeys(SPLITS, 0)
    home: dict[str, SplitName] = {}
    # Those of one split first, then the largest: the small ones even out the shares.
    for leader, found in sorted(
        rows.items(), key=lambda item: (len(item[1]) > 1, -item[1].total(), item[0])
    ):
        name = min(found, key=lambda name: (stays[name] / had[name], _WORTH.index(name)))
        home[leader] = name
        stays[name] += found[name]
    result: dict[SplitName, list[E]] = {
        name: [e for e in kept[name] if home[leaders[e.call_id]] == name] for name in SPLITS
    }
    lost["near-copy"] = sum(had.values()) - sum(stays.values())
    return result, +lost


def _moment(train: Sequence[datetime], test: Sequence[datetime]) -> datetime | None:
    """Train until it, test from it on: where the larger of both shares lost is smallest."""
    if not train or not test:
        return None
    older, newer = sorted(train), sorted(test)

    def losses(moment: datetime) -> tuple[float, float]:
        first = 1 - bisect_right(older, moment) / len(older)
        second = bisect_left(newer, moment) / len(newer)
        return max(first, second), first + second

    return min({*older, *newer}, key=lambda moment: (losses(moment), moment))
