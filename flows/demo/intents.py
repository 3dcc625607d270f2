"""Sentences and tool schemas from Home Assistant's own grammar.

The grammar ships sentence templates such as ``<turn> on [<all>] [<the>] {area} <light>``. Walking a
template's expression tree at random gives an utterance together with the tool call it means.

Only some intents are used, and of those only the templates that name their place: a template such as
``turn on the lights`` takes the room from the device that heard it, which the request does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    TextChunk,
)
from hassil.intents import IntentData, Intents, RangeSlotList, TextSlotList

from flows.demo.packaged import grammar

AREAS = (
    "kitchen", "bedroom", "living room", "bathroom", "office", "garage", "hallway", "dining room",
)  # fmt: skip
DEVICES = ("coffee maker", "christmas tree", "desk fan", "heater", "tv", "radio")
GROCERIES = (
    "milk", "eggs", "bread", "butter", "coffee", "apples", "bananas", "tomatoes", "rice", "cheese",
    "onions", "chicken", "olive oil", "sugar", "tea", "potatoes", "yogurt", "flour", "salt", "soap",
)  # fmt: skip
VALUES: dict[str, Sequence[str]] = {
    "area": AREAS, "name": DEVICES, "shopping_list_item": GROCERIES,
}  # fmt: skip
# The grammar's numeric ranges reach from 0 to 100 degrees; people ask for these.
NUMBERS: dict[str, range] = {
    "brightness": range(5, 101, 5),
    "position": range(10, 100, 10),
    "temperature": range(15, 27),
    "timer_hours": range(1, 13),
    "timer_minutes": range(1, 61),
    "volume": range(5, 101, 5),
}


@dataclass(frozen=True)
class Tool:
    """One intent offered as a tool: what it does, how often it is asked, which templates speak it."""

    intent: str
    description: str
    weight: int
    blocks: tuple[str, ...]
    """The grammar's names of the slot combinations to take sentences from."""
    cues: tuple[str, ...] = field(default=())
    """An utterance must contain one of these: "set the kitchen to 40" could mean several tools."""


TOOLS = (
    Tool("HassTurnOn", "Turn on lights, fans or a device", 5, ("area_domain", "name_only")),
    Tool("HassTurnOff", "Turn off lights, fans or a device", 5, ("area_domain", "name_only")),
    Tool(
        "HassLightSet", "Set brightness or color of lights", 4, ("area_brightness", "area_color"),
        ("bright", "light", "lamp", "color"),
    ),
    Tool("HassSetPosition", "Move a cover to a position", 2, ("area_device_class",)),
    Tool("HassClimateSetTemperature", "Set the target temperature", 3, ("area_temperature",)),
    Tool("HassClimateGetTemperature", "Read the temperature", 2, ("area_only",)),
    Tool("HassSetVolume", "Set the volume of a player", 2, ("area_only",), ("volume",)),
    Tool("HassMediaPause", "Pause what plays", 1, ("area_only",)),
    Tool("HassMediaNext", "Skip to the next track", 1, ("area_only",), ("next", "skip")),
    Tool("HassStartTimer", "Start a timer", 2, ("minutes_only", "hours_only"), ("timer",)),
    Tool("HassCancelTimer", "Cancel a timer", 1, ("minutes_only", "hours_only")),
    Tool("HassShoppingListAddItem", "Add to the shopping list", 3, ("item_only",)),
)  # fmt: skip
SLOT_ORDER = ("domain", "device_class", "name", "area", "item", "color")


@dataclass(frozen=True)
class Utterance:
    text: str
    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class _Template:
    sentence: Expression
    slots: dict[str, Any]
    tool: Tool


def sample_utterance(random: Random) -> Utterance:
    """One request and the tool call it means; the seed decides both."""
    tool = random.choices(TOOLS, weights=[tool.weight for tool in TOOLS])[0]
    while True:
        block = random.choice(_blocks(tool))
        template = random.choice(block)
        captured: dict[str, Any] = {}
        text = " ".join(_walk(template.sentence, random, captured).split())
        if tool.cues and not any(cue in text for cue in tool.cues):
            continue
        return Utterance(text, tool.intent, _ordered({**template.slots, **captured}))


@cache
def tool_definitions() -> list[dict[str, Any]]:
    """The tools as OpenAI function definitions, their parameters read from the templates."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.intent,
                "description": tool.description,
                "parameters": _parameters(tool),
            },
        }
        for tool in TOOLS
    ]


@cache
def small_talk() -> tuple[tuple[str, str], ...]:
    """What the assistant answers in words: (utterance, reply) from the grammar's own responses."""
    replies = grammar()["responses"]["intents"]["HassRespond"]
    pairs: list[tuple[str, str]] = []
    for data in _intents().intents["HassRespond"].data:
        for sentence in data.sentences:
            # The walks of these few short templates are soon exhausted.
            walks = {" ".join(_walk(sentence.expression, Random(n), {}).split()) for n in range(20)}
            pairs += [(text, replies[data.response]) for text in sorted(walks)]
    return tuple(pairs)


@cache
def _intents() -> Intents:
    wanted = {tool.intent for tool in TOOLS} | {"HassRespond"}
    source = grammar()
    chosen = {name: body for name, body in source["intents"].items() if name in wanted}
    return Intents.from_dict({**source, "intents": chosen})


@cache
def _blocks(tool: Tool) -> tuple[tuple[_Template, ...], ...]:
    """The templates of a tool, grouped as the grammar groups them."""
    blocks = tuple(
        tuple(_Template(s.expression, dict(data.slots), tool) for s in data.sentences)
        for data in _intents().intents[tool.intent].data
        if (data.metadata or {}).get("slot_combination") in tool.blocks and _speaks_for_itself(data)
    )
    if not blocks:
        raise ValueError(f"the grammar has no templates {tool.blocks} for {tool.intent}")
    return blocks


def _speaks_for_itself(data: IntentData) -> bool:
    """False for blocks that need a device of a kind the demo's house does not name."""
    domains = data.requires_context.get("domain")
    return "area" not in data.requires_context and (domains is None or "switch" in domains)


def _walk(node: Expression, random: Random, captured: dict[str, Any]) -> str:
    """Speak one random path through a template, noting the slots it passes."""
    match node:
        case TextChunk():
            return node.original_text
        case Alternative():
            return _walk(random.choice(node.items), random, captured)
        case Permutation():
            items = random.sample(node.items, len(node.items))
            return " ".join(_walk(item, random, captured) for item in items)
        case Group():
            return "".join(_walk(item, random, captured) for item in node.items)
        case RuleReference():
            rule = _intents().expansion_rules[node.rule_name]
            return _walk(rule.expression, random, captured)
        case ListReference():
            spoken, captured[node.slot_name] = _value(node.list_name, random)
            return f"{node.prefix or ''}{spoken}{node.suffix or ''}"
    raise TypeError(f"unknown part of a sentence template: {type(node).__name__}")


def _value(list_name: str, random: Random) -> tuple[str, Any]:
    """A value of a slot: as it is spoken and as it is passed to the tool."""
    if list_name in VALUES:
        value = random.choice(VALUES[list_name])
        return value, value
    if list_name in NUMBERS:
        number = random.choice(NUMBERS[list_name])
        return str(number), number
    values = _intents().slot_lists[list_name]
    if not isinstance(values, TextSlotList):
        raise ValueError(f"no values are declared for the list {list_name!r}")
    choice = random.choice(values.values)
    return _walk(choice.text_in, random, {}), choice.value_out


def _parameters(tool: Tool) -> dict[str, Any]:
    properties: dict[str, dict[str, Any]] = {}
    always: set[str] | None = None
    for template in (template for block in _blocks(tool) for template in block):
        slots = {name: {"type": "string"} for name in template.slots}
        for reference in _references(template.sentence):
            slots[reference.slot_name] = {"type": _json_type(reference.list_name)}
        properties |= slots
        always = set(slots) if always is None else always & set(slots)
    return {
        "type": "object",
        "properties": _ordered(properties),
        "required": [name for name in _ordered(properties) if name in (always or set())],
        "additionalProperties": False,
    }


def _references(node: Expression) -> list[ListReference]:
    rules = _intents().expansion_rules
    return list(node.list_references(rules)) if isinstance(node, Group) else []


def _json_type(list_name: str) -> str:
    values = _intents().slot_lists.get(list_name)
    numeric = list_name in NUMBERS or isinstance(values, RangeSlotList)
    if isinstance(values, TextSlotList):
        numeric = all(isinstance(value.value_out, int) for value in values.values)
    return "integer" if numeric else "string"


def _ordered(slots: dict[str, Any]) -> dict[str, Any]:
    """One order of arguments whatever the order in the sentence: a model need not learn word order."""
    known = {name: slots[name] for name in SLOT_ORDER if name in slots}
    return known | {name: slots[name] for name in sorted(slots) if name not in known}
