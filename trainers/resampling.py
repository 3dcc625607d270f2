"""Ask the teacher again where its logged answers disagree, within a budget of calls.

A prompt that was answered in several ways teaches the small model to guess. Such prompts are asked a
few times more; the answer that more than half of the new ones give replaces the logged ones, and
where there is none the examples are left out. A person's correction is never touched. What the teacher
said is kept per prompt, so that a night which was killed asks for the rest only (the prompt that it
was at may be asked again).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai

from infra.objects.store import ObjectExists, ObjectStore
from infra.prompting.answers import check_answer
from infra.prompting.template import render_answer
from infra.settings.serving import Teacher
from trainers.data_sets.labels import Example, answer_key, prompt_key

Labels = Mapping[str, Mapping[str, Any] | None]
"""Prompt key to the answer that replaces the logged ones; None: its examples are left out."""
Ask = Callable[[Mapping[str, Any]], dict[str, Any] | None]
"""One answer (an assistant message) to a request; None when the teacher refuses this request."""

PREFIX = "reports/labels"
_ASKED_FIELDS = (
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "max_tokens",
    "max_completion_tokens",
)


class TeacherAway(Exception):
    """The teacher gives no answers for now; the message says why."""


def disagreeing(examples: Sequence[Example]) -> dict[str, Mapping[str, Any]]:
    """Prompt key to request of the prompts with several answers, the most divided first. Pure."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    requests: dict[str, Mapping[str, Any]] = {}
    for example in examples:
        if example.source != "correction":
            key = prompt_key(example.request)
            answers[key][answer_key(example.answer)] += 1
            requests.setdefault(key, example.request)
    divided = [
        (max(counts.values()) / counts.total(), key)
        for key, counts in answers.items()
        if len(counts) > 1
    ]
    return {key: requests[key] for _, key in sorted(divided)}


def majority(answers: Sequence[Mapping[str, Any]], asked: int) -> Mapping[str, Any] | None:
    """The answer that more than half of ``asked`` calls gave; None when none did. Pure."""
    counts = Counter(answer_key(answer) for answer in answers)
    for answer in answers:
        if counts[answer_key(answer)] * 2 > asked:
            return answer
    return None


def relabel(examples: Sequence[Example], labels: Labels) -> list[Example]:
    """The examples with the answers of ``labels``, without those that have none. Pure."""
    found: list[Example] = []
    for example in examples:
        key = prompt_key(example.request)
        if example.source == "correction" or key not in labels:
            found.append(example)
        elif (answer := labels[key]) is not None:
            found.append(replace(example, answer=dict(answer)))
    return found


def labels_digest(labels: Labels) -> str | None:
    """sha256 over the canonical JSON, 64 hex characters; None when there are no labels."""
    if not labels:
        return None
    return hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()


def resample(
    store: ObjectStore,
    dataset_digest: str,
    examples: Sequence[Example],
    ask: Ask,
    *,
    calls: int,
    answers: int,
) -> None:
    """Ask what was not asked yet for this data set, ``calls`` calls over all nights at most.

    Args:
        examples: those that are trained on.
        answers: calls per prompt, at the same time.

    Raises:
        TeacherAway: what was answered until then is kept.
        ObjectStoreError: the store cannot be read or written.
    """
    known = _records(store, dataset_digest)
    left = calls - sum(record["calls"] for record in known.values())
    for key, request in disagreeing(examples).items():
        if key in known:
            continue
        if left < answers:
            return
        left -= answers
        with ThreadPoolExecutor(answers) as pool:
            said = list(pool.map(ask, [request] * answers))
        refused = all(answer is None for answer in said)
        good = [answer for answer in said if answer is not None and _usable(answer, request)]
        # A prompt that the teacher refuses stays as it was logged.
        record = {"calls": answers, "refused": refused, "answer": majority(good, answers)}
        try:
            name = f"{PREFIX}/{dataset_digest}/{key}.json"
            store.create(name, json.dumps({**record, "answers": good}, sort_keys=True).encode())
        except ObjectExists:
            continue  # another night was faster: its answers stand


def kept_labels(store: ObjectStore, dataset_digest: str) -> dict[str, Mapping[str, Any] | None]:
    """What the teacher's answers so far make of the data set's prompts. Asks nobody."""
    records = _records(store, dataset_digest)
    return {key: record["answer"] for key, record in records.items() if not record["refused"]}


def open_teacher(settings: Teacher) -> tuple[Ask, Callable[[], None]]:
    """A teacher to ask, and what closes its connections. Each question is one call, never repeated."""
    key = settings.api_key.get_secret_value() if settings.api_key else "none"
    client = openai.OpenAI(
        base_url=str(settings.url), api_key=key, timeout=settings.timeout_seconds, max_retries=0
    )

    def ask(request: Mapping[str, Any]) -> dict[str, Any] | None:
        body = {name: request[name] for name in _ASKED_FIELDS if request.get(name) is not None}
        try:
            completion = client.chat.completions.create(model=settings.model, **body)
        except (openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError):
            return None
        except openai.OpenAIError as error:
            raise TeacherAway(f"the teacher at {settings.url} gave no answer: {error}") from error
        if not completion.choices or completion.choices[0].finish_reason == "length":
            return {}
        said = completion.choices[0].message.model_dump(mode="json", exclude_none=True)
        message = {"role": "assistant", "content": said.get("content")}
        return message | {name: said[name] for name in ("tool_calls",) if said.get(name)}

    return ask, client.close


def _records(store: ObjectStore, dataset_digest: str) -> dict[str, dict[str, Any]]:
    """Prompt key to what was kept of it."""
    keys = [item.key for item in store.list(f"{PREFIX}/{dataset_digest}/")]
    return {
        key.rpartition("/")[2].removesuffix(".json"): json.loads(store.get(key)) for key in keys
    }


def _usable(answer: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    try:
        return check_answer(answer, request).passed and bool(render_answer(answer).strip())
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
