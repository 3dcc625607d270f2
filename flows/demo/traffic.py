"""The agents' traffic that the demo plays, with the answers that the teacher gives.

Three kinds of call of different structure, and a few that belong nowhere:

- ``home``: a tool-calling agent, from Home Assistant's grammar (``intents``);
- ``triage``: one label for a customer's message, from tau2's tasks (``support``);
- ``extract``: a JSON record under a schema, from tau2's shop (``orders``);
- ``rare``: free questions about handbooks (``handbook``).

The seed decides everything, and the same request never has two answers: not within one seed and not
across seeds, because each answer can be read off its request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from flows.demo import handbook, intents, orders, people, support

Json = dict[str, Any]

HOME_SYSTEM_PROMPT = (
    "You control a smart home. Call exactly one tool for each request; answer in words only when "
    "no tool applies."
)
# Kind -> (share of the calls, most calls in a session).
MIX: dict[str, tuple[float, int]] = {
    "home": (0.42, 4),
    "triage": (0.27, 2),
    "extract": (0.28, 3),
    "rare": (0.03, 1),
}
KINDS = tuple(MIX)
SMALL_TALK = 0.04
SIGNED_REQUESTS = 0.06


@dataclass(frozen=True)
class TrafficCall:
    kind: str
    messages: list[Json]
    tools: list[Json] | None
    response_format: Json | None
    answer: Json
    """An OpenAI assistant message: role, content and, for a tool call, tool_calls."""

    @property
    def request(self) -> Json:
        """What is asked, without the model's name: a field that says nothing is left out."""
        more = {"tools": self.tools, "response_format": self.response_format}
        return {"messages": self.messages, **{name: value for name, value in more.items() if value}}

    @property
    def key(self) -> str:
        return request_key(self.messages, self.tools, self.response_format)


@dataclass(frozen=True)
class TrafficSession:
    session_id: str
    kind: str
    calls: tuple[TrafficCall, ...]


def sessions(seed: int, count: int, kinds: Sequence[str] | None = None) -> list[TrafficSession]:
    """Sessions of real requests with their answers.

    Args:
        seed: decides everything; two seeds give mostly different texts.
        count: how many sessions; a session has one to four calls.
        kinds: the kinds to draw from, all in their usual mix by default.
    """
    chosen = list(KINDS if kinds is None else kinds)
    unknown = sorted(set(chosen) - set(KINDS))
    if unknown or not chosen:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, not {unknown or 'none'}")
    # MIX gives shares of calls; a kind with long sessions needs fewer sessions for its share.
    weights = [MIX[kind][0] / (1 + MIX[kind][1]) for kind in chosen]
    answers: dict[str, Json] = {}
    return [
        _session(Random(f"{seed}/{index}"), seed, index, chosen, weights, answers)
        for index in range(count)
    ]


def request_key(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    response_format: Mapping[str, Any] | None,
) -> str:
    """The hash by which a recorded answer is found again.

    Absent and empty fields count alike: clients differ in whether they send ``tools: null``.
    """
    request = {
        "messages": [
            {name: value for name, value in message.items() if value is not None}
            for message in messages
        ],
        "tools": list(tools) if tools else None,
        "response_format": response_format or None,
    }
    canonical = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _session(
    random: Random,
    seed: int,
    index: int,
    kinds: Sequence[str],
    weights: Sequence[float],
    answers: dict[str, Json],
) -> TrafficSession:
    kind = random.choices(kinds, weights=weights)[0]
    person = random.choice(people.people())
    length = random.randint(1, MIX[kind][1])
    calls: list[TrafficCall] = []
    while len(calls) < length:
        call = _MAKERS[kind](random, person)
        # The grammar and the databases are other people's: should two meanings of one sentence
        # ever appear in them, the first stays and the second is drawn again.
        if answers.setdefault(call.key, call.answer) == call.answer:
            calls.append(call)
    return TrafficSession(f"{kind}-{seed}-{index:05d}", kind, tuple(calls))


def _home(random: Random, person: people.Person) -> TrafficCall:
    if random.random() < SMALL_TALK:
        text, reply = random.choice(intents.small_talk())
        answer: Json = {"role": "assistant", "content": reply}
    else:
        utterance = intents.sample_utterance(random)
        text = utterance.text
        answer = _tool_call(utterance.tool, utterance.arguments, text)
    if random.random() < SIGNED_REQUESTS:
        text = random.choice(
            (
                f"[panel {people.ip_address(random)}] {text}",
                f"{text} (sent by {person.email})",
                f"{text} ({person.first_name}, {people.phone(random)})",
            )
        )
    messages = _messages(HOME_SYSTEM_PROMPT, text)
    return TrafficCall("home", messages, intents.tool_definitions(), None, answer)


def _triage(random: Random, person: people.Person) -> TrafficCall:
    text, queue = support.sample_message(random, person)
    answer = {"role": "assistant", "content": queue}
    return TrafficCall("triage", _messages(support.system_prompt(), text), None, None, answer)


def _extract(random: Random, _: people.Person) -> TrafficCall:
    note, record = orders.sample_note(random)
    answer = {"role": "assistant", "content": record}
    messages = _messages(orders.SYSTEM_PROMPT, note)
    return TrafficCall("extract", messages, None, orders.RESPONSE_FORMAT, answer)


def _rare(random: Random, _: people.Person) -> TrafficCall:
    system, question, reply = handbook.sample_question(random)
    answer = {"role": "assistant", "content": reply}
    return TrafficCall("rare", _messages(system, question), None, None, answer)


_MAKERS: dict[str, Callable[[Random, people.Person], TrafficCall]] = {
    "home": _home,
    "triage": _triage,
    "extract": _extract,
    "rare": _rare,
}


def _messages(system: str | None, text: str) -> list[Json]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def _tool_call(name: str, arguments: Json, text: str) -> Json:
    # Ids follow from the request, so that the same request always has the same recorded answer.
    identity = hashlib.sha256(text.encode()).hexdigest()[:24]
    function = {
        "name": name,
        "arguments": json.dumps(arguments, ensure_ascii=False, separators=(",", ":")),
    }
    call = {"id": f"call_{identity}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}
