"""Traffic by the day from packaged data: stationary because its sessions are shuffled, or with a drift.

- ``home``: Home Assistant's grammar, tool calls (``flows.demo``);
- ``triage``: customers' sentences of tau2's tasks, one label each (``flows.demo``);
- ``chat``: 7,168 conversations of 1,315 people (the package chitchat-dataset, MIT), which
  ``bench/make-peers.sh`` puts into ``.venv-peers-corpora``: what one says, and the other answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from hassil.intents import Intents, TextSlotList

from evaluators.watched import row_of_exchange
from flows.demo.packaged import package_folder
from flows.demo.traffic import sessions

Row = dict[str, Any]
Session = list[Row]

CORPORA = Path(os.environ.get("DRIFT_CORPORA", ".venv-peers-corpora"))
SHARE = 0.2
"""Of the calls that are of the new kind, once the drift has begun."""
NEW_TOOL = "HassShoppingListAddItem"
NEW_QUEUE = "phone_support"
CHAT_TURNS = 40
_WORDS_OF_THE_HOUSE = ("küche", "bad", "wohnzimmer", "büro", "flur", "garage", "schlafzimmer")


@dataclass(frozen=True)
class Stream:
    """Sessions without end, as they are, and as they are once a drift has begun."""

    name: str
    drift: str
    before: Iterator[Session]
    after: Iterator[Session]


def chat_is_there() -> bool:
    return (CORPORA / "chitchat_dataset" / "dataset.json").exists()


def names() -> tuple[str, ...]:
    return ("home", "triage", *(("chat",) if chat_is_there() else ()))


def stationary(name: str, part: str, seed: int) -> Iterator[Session]:
    """Sessions of one part (``tuned`` or ``measured``), which has no text of the other's in chat and
    other draws of the grammars in the rest."""
    if name == "chat":
        yield from _forever(_conversations(part), seed)
    batch = 0
    while True:
        drawn = f"{part}/{seed}/{batch}"
        yield from _played(name, Random(drawn).randrange(10**9))
        batch += 1


def planted(name: str, drift: str, seed: int) -> Stream:
    """A drift in a stream of the measured part. Raises KeyError where it is not defined."""
    return _DRIFTS[name, drift](name, drift, seed)


def drifts() -> list[tuple[str, str]]:
    return [(name, drift) for name, drift in _DRIFTS if name in names()]


def take(source: Iterator[Session], calls: int) -> list[Row]:
    """Whole sessions until there are so many calls."""
    rows: list[Row] = []
    while len(rows) < calls:
        rows += next(source)
    return rows


def _played(kind: str, seed: int, count: int = 400) -> Iterator[Session]:
    for session in sessions(seed, count, [kind]):
        yield [
            row_of_exchange(
                call.request,
                call.answer,
                f"{session.session_id}-{number}",
                session.session_id,
            )
            for number, call in enumerate(session.calls)
        ]


@cache
def _conversations(part: str) -> list[Session]:
    found = json.loads((CORPORA / "chitchat_dataset" / "dataset.json").read_text(encoding="utf-8"))
    names = sorted(found)[0 if part == "tuned" else 1 :: 2]
    Random(f"chat/{part}").shuffle(names)
    made = [_exchanges(name, found[name]["messages"]) for name in names[:1600]]
    return [session for session in made if session]


def _exchanges(name: str, turns: Sequence[Sequence[dict[str, Any]]]) -> Session:
    said = [" ".join(str(item.get("text") or "") for item in turn) for turn in turns[:CHAT_TURNS]]
    return [
        row_of_exchange(
            {"messages": [{"role": "user", "content": said[place]}]},
            {"role": "assistant", "content": said[place + 1]},
            f"{name}-{place}",
            name,
        )
        for place in range(0, len(said) - 1, 2)
    ]


def _forever(found: list[Session], seed: int) -> Iterator[Session]:
    random = Random(seed)
    while True:
        yield from random.sample(found, len(found))


def _without(source: Iterator[Session], wanted: Callable[[Row], bool]) -> Iterator[Session]:
    for session in source:
        kept = [row for row in session if not wanted(row)]
        if kept:
            yield kept


def _from_now_on(name: str, drift: str, seed: int, new: Iterator[Session]) -> Stream:
    """A fifth of the calls are of the new kind once the drift has begun."""
    return Stream(
        name,
        drift,
        stationary(name, "measured", seed),
        _mixed(stationary(name, "measured", seed + 1), new, seed),
    )


def _new_tool(name: str, drift: str, seed: int) -> Stream:
    """A tool that was offered all along is used from now on, in a tenth of the calls."""
    return Stream(
        name,
        drift,
        _without(stationary(name, "measured", seed), lambda row: row["action"] == NEW_TOOL),
        stationary(name, "measured", seed + 1),
    )


def _new_queue(name: str, drift: str, seed: int) -> Stream:
    """The same of labels: a queue that nobody was sent to."""
    return Stream(
        name,
        drift,
        _without(stationary(name, "measured", seed), lambda row: row["label"] == NEW_QUEUE),
        stationary(name, "measured", seed + 1),
    )


def _shifted_mix(name: str, drift: str, seed: int) -> Stream:
    """A fifth of the calls more are of two kinds that there were before."""
    common = {"home": ("HassTurnOn", "HassLightSet"), "triage": ("order_return", "order_change")}
    source = stationary(name, "measured", seed + 2)
    more = _without(
        source, lambda row: row["action" if name == "home" else "label"] not in common[name]
    )
    return _from_now_on(name, drift, seed, more)


def _long_talk(name: str, drift: str, seed: int) -> Stream:
    """A fifth of the conversations are from now on of those that are long-winded."""
    found = _conversations("measured")
    length = {id(s): sum(len(row["prompt"]) for row in s) / len(s) for s in found}
    long = sorted(found, key=lambda s: -length[id(s)])[: len(found) // 4]
    return _from_now_on(name, drift, seed, _forever(long, seed))


def _new_language(name: str, drift: str, seed: int) -> Stream:
    """A fifth of the callers speak German: Home Assistant's German grammar, the same answers."""
    english = stationary(name, "measured", seed + 2)
    return _from_now_on(name, drift, seed, _in_german(english, seed))


def _new_template(name: str, drift: str, seed: int) -> Stream:
    """A fifth of the calls come through a form that puts lines around what is said."""
    plain = stationary(name, "measured", seed + 2)
    return _from_now_on(name, drift, seed, _through_a_form(plain))


def _mixed(usual: Iterator[Session], new: Iterator[Session], seed: int) -> Iterator[Session]:
    random = Random(f"mixed/{seed}")
    while True:
        yield next(new) if random.random() < SHARE else next(usual)


def _through_a_form(source: Iterator[Session]) -> Iterator[Session]:
    for session in source:
        yield [
            row
            | {"prompt": f"Request from the web form\nMessage: {row['prompt']}\n-- sent by form"}
            for row in session
        ]


def _in_german(source: Iterator[Session], seed: int) -> Iterator[Session]:
    from evaluators.languages import language_of

    random = Random(f"german/{seed}")
    for session in source:
        spoken = [(row, _german(random)) for row in session]
        yield [row | {"prompt": text, "prompt_language": language_of(text)} for row, text in spoken]


@cache
def _german_grammar() -> Intents:
    place = package_folder("home_assistant_intents") / "data" / "de.json"
    return Intents.from_dict(json.loads(place.read_text(encoding="utf-8")))


def _german(random: Random) -> str:
    grammar = _german_grammar()
    wanted = ("HassTurnOn", "HassTurnOff", "HassLightSet", "HassClimateSetTemperature")
    while True:
        data = random.choice(grammar.intents[random.choice(wanted)].data)
        sentence = random.choice(data.sentences)
        try:
            return " ".join(_walk(sentence.expression, grammar, random).split())
        except (KeyError, IndexError):
            continue  # a rule that this release of the grammar lacks


def _walk(node: Any, grammar: Intents, random: Random) -> str:
    """One random path; numbers and names of the house are made up."""
    kind = type(node).__name__
    if kind == "TextChunk":
        return str(node.original_text)
    if kind == "Alternative":
        return _walk(random.choice(node.items), grammar, random)
    if kind == "Permutation":
        items = random.sample(node.items, len(node.items))
        return " ".join(_walk(item, grammar, random) for item in items)
    if kind == "RuleReference":
        return _walk(grammar.expansion_rules[node.rule_name].expression, grammar, random)
    if kind == "ListReference":
        values = grammar.slot_lists.get(node.list_name)
        if isinstance(values, TextSlotList) and values.values:
            return _walk(random.choice(values.values).text_in, grammar, random)
        if node.list_name in ("area", "name", "floor"):
            return random.choice(_WORDS_OF_THE_HOUSE)
        return str(random.randrange(5, 100))
    return "".join(_walk(item, grammar, random) for item in node.items)


_DRIFTS: dict[tuple[str, str], Callable[[str, str, int], Stream]] = {
    ("home", "new tool"): _new_tool,
    ("triage", "new label"): _new_queue,
    ("home", "new language"): _new_language,
    ("home", "new template"): _new_template,
    ("triage", "new template"): _new_template,
    ("chat", "new template"): _new_template,
    ("home", "shifted mix"): _shifted_mix,
    ("triage", "shifted mix"): _shifted_mix,
    ("chat", "shifted mix"): _long_talk,
}
