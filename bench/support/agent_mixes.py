"""Labelled traffic of many kinds of agents, from public task lists, databases and grammars.

``FIRST`` is the mix that discovery was tuned on; ``HELD_OUT`` has other kinds, looked at but not tuned on.
Several kinds of each mix share one structure (a plain system prompt, no tools), so that only what is asked
tells them apart. ``other`` is what belongs nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from random import Random
from typing import Any

from bench.support.call_logs import START, record_of
from flows.demo import intents, people, traffic
from flows.demo.handbook import sample_question
from flows.demo.packaged import package_folder, support_database, support_policy, support_tasks
from infra.calls.record import CallRecord

Json = dict[str, Any]
Exchange = tuple[Json, Json]
"""(request, answer message)."""
OTHER = "other"
PLAIN = "You are a helpful assistant."
DOMAINS = ("airline", "retail", "telecom")
MAX_STEPS = 5
RARE = 0.03


def mix(
    kinds: dict[str, Maker], seed: int, count: int, first: int = 0
) -> Iterator[tuple[str, CallRecord]]:
    """``count`` (label, record), a second of the log's time apart; the seed decides everything."""
    made, session = 0, 0
    names = list(kinds)
    shares = [RARE if kind == "rare" else (1 - RARE) / (len(names) - 1) for kind in names]
    while made < count:
        random = Random(f"{seed}/{session}")
        (kind,) = random.choices(names, shares)
        label = OTHER if kind == "rare" else kind
        for request, answer in kinds[kind](random)[: count - made]:
            number = first + made
            name, time = f"{seed}-{number:08d}", START + timedelta(seconds=number)
            yield label, record_of(request, answer, name, f"{seed}-{session}", time)
            made += 1
        session += 1


Maker = Callable[[Random], list[Exchange]]


def _demo(kind: str) -> Maker:
    def make(random: Random) -> list[Exchange]:
        (session,) = traffic.sessions(random.randrange(1 << 40), 1, [kind])
        return [(call.request, call.answer) for call in session.calls]

    return make


def _agent(domain: str) -> Maker:
    """A customer-service agent at work: the steps of one task, each a call with all before it."""

    def make(random: Random) -> list[Exchange]:
        while True:
            task = random.choice(support_tasks(domain))
            steps = (task["evaluation_criteria"]["actions"] or [])[:MAX_STEPS]
            if steps:
                break
        messages: list[Json] = [
            {"role": "system", "content": support_policy(domain)},
            {"role": "user", "content": _case(task)},
        ]
        found: list[Exchange] = []
        for number, step in enumerate(steps):
            function = {"name": step["name"], "arguments": json.dumps(step["arguments"])}
            call = {"id": f"call_{number}", "type": "function", "function": function}
            answer: Json = {"role": "assistant", "content": None, "tool_calls": [call]}
            found.append(({"messages": list(messages), "tools": _tools(domain)}, answer))
            result = {"role": "tool", "tool_call_id": call["id"], "content": '{"ok": true}'}
            messages += [answer, result]
        return found

    return make


@cache
def _tools(domain: str) -> list[Json]:
    known: dict[str, set[str]] = {}
    for task in support_tasks(domain):
        for step in task["evaluation_criteria"]["actions"] or []:
            known.setdefault(step["name"], set()).update(step["arguments"])
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {argument: {} for argument in sorted(arguments)},
                },
            },
        }
        for name, arguments in sorted(known.items())
    ]


def _case(task: Json) -> str:
    told = task["user_scenario"]["instructions"]
    return f"{told['reason_for_call']}\n{told['known_info'] or ''}"


def _any_case(random: Random) -> str:
    return _case(random.choice(support_tasks(random.choice(DOMAINS))))


def _said(system: str | None, text: str, answer: str) -> list[Exchange]:
    first = [{"role": "system", "content": system}] if system else []
    return [
        (
            {"messages": [*first, {"role": "user", "content": text}]},
            {"role": "assistant", "content": answer},
        )
    ]


def _summary(random: Random) -> list[Exchange]:
    case = _any_case(random)
    asked = random.choice(
        (
            "Summarize this customer's case in two sentences for the next shift.",
            "Summarize the following case in two sentences for the next shift, please.",
        )
    )
    return _said(PLAIN, f"{asked}\n\n{case}", case.split(". ")[0])


def _reply(random: Random) -> list[Exchange]:
    person = random.choice(people.people())
    case = _any_case(random)
    text = f"Draft a short friendly e-mail that tells {person.name} we look into it:\n\n{case}"
    return _said(PLAIN, text, f"Dear {person.first_name}, we look into it.")


def _intent(random: Random) -> list[Exchange]:
    utterance = intents.sample_utterance(random)
    text = f"Which intent is meant by this voice command? Name the intent only. Command: {utterance.text}"
    return _said(PLAIN, text, utterance.tool)


def _in_language(language: str, system: str) -> Maker:
    def make(random: Random) -> list[Exchange]:
        name, template = random.choice(_sentences(language))
        sentence = _spoken(template, random)
        answer = {"role": "assistant", "content": json.dumps({"intent": name})}
        asked = {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": sentence},
            ]
        }
        return [({**asked, "response_format": {"type": "json_object"}}, answer)]

    return make


@cache
def _sentences(language: str) -> list[tuple[str, str]]:
    path = package_folder("home_assistant_intents") / "data" / f"{language}.json"
    found = json.loads(path.read_text(encoding="utf-8"))["intents"]
    return [
        (name, sentence)
        for name, body in sorted(found.items())
        for data in body["data"]
        for sentence in data["sentences"]
    ]


def _spoken(sentence: str, random: Random) -> str:
    """One reading of a template: alternatives and options drawn, lists and rules by their names."""
    while (inner := re.search(r"[(\[]([^()\[\]]*)[)\]]", sentence)) is not None:
        choices = [*inner.group(1).split("|"), *([""] if inner.group().startswith("[") else [])]
        sentence = sentence[: inner.start()] + random.choice(choices) + sentence[inner.end() :]
    return " ".join(re.sub(r"[<>{}]|:\w+", " ", sentence).replace("_", " ").split())


def _ruling(random: Random) -> list[Exchange]:
    _, _, rule = sample_question(random)
    text = f"Does this rule cover the case below? Answer yes or no.\nRule: {rule}\nCase: {_any_case(random)}"
    return _said(None, text, random.choice(("yes", "no")))


def _status(random: Random) -> list[Exchange]:
    orders = support_database("retail")["orders"]
    order = orders[random.choice(sorted(orders))]
    text = (
        f"Read the status off this order record and give it in one word: {json.dumps(order)[:1500]}"
    )
    return _said(None, text, str(order["status"]))


def _title(random: Random) -> list[Exchange]:
    case = _any_case(random)
    return _said(
        None, f"Write a title of at most six words for a ticket like this. {case}", case[:40]
    )


def _mood(random: Random) -> list[Exchange]:
    """The instruction comes last."""
    text = f"{_any_case(random)}\n\nSay in one word how angry this customer sounds: calm, cross or furious."
    return _said(PLAIN, text, random.choice(("calm", "cross")))


def _flight(random: Random) -> list[Exchange]:
    flights = support_database("airline")["flights"]
    flight = flights[random.choice(sorted(flights))]
    text = (
        f"Turn this into a sentence for the departure board: flight {flight['flight_number']} from "
        f"{flight['origin']} to {flight['destination']}, leaves {flight['scheduled_departure_time_est']}"
    )
    return _said(None, text, f"{flight['flight_number']} to {flight['destination']}")


FIRST: dict[str, Maker] = {
    **{kind: _demo(kind) for kind in ("home", "triage", "extract", "rare")},
    **{domain: _agent(domain) for domain in DOMAINS},
    "summary": _summary,
    "reply": _reply,
    "intent": _intent,
    "mood": _mood,
}
HELD_OUT: dict[str, Maker] = {
    "rare": _demo("rare"),
    "german": _in_language("de", "Du steuerst ein Haus. Antworte mit JSON."),
    "french": _in_language("fr", "Tu commandes une maison. Réponds en JSON."),
    "spanish": _in_language("es", "Controlas una casa. Responde con JSON."),
    "dutch": _in_language("nl", "Je bestuurt een huis. Antwoord met JSON."),
    "ruling": _ruling,
    "status": _status,
    "title": _title,
    "flight": _flight,
}
