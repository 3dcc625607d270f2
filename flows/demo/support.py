"""Customers' messages with the queue they belong to, from tau2's customer-service tasks.

Each shipped task says why a customer calls and which database actions are right for it. A sentence
of the call is kept when it names exactly one of those actions; the action is its label. Products,
orders, airports and dates in it are then exchanged for others of the shipped databases, and the
customer says who they are in the words the tasks use for that.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random

from flows.demo import people
from flows.demo.packaged import support_database, support_tasks

SYSTEM_PROMPT = "You sort our customers' messages into queues. Answer with the queue only: {}."
LONGEST_SENTENCE = 170

# queue -> (domain, the expected action that labels it, how customers name it)
ACTIONS = {
    "order_return": ("retail", "return_delivered_order_items", r"\breturn(ed|ing)?\b"),
    "order_exchange": ("retail", "exchange_delivered_order_items", r"\bexchange"),
    "order_cancel": ("retail", "cancel_pending_order", r"\bcancel"),
    "order_change": ("retail", "modify_pending_order_items", r"\b(modify|change|upgrade)\b"),
    "flight_change": (
        "airline",
        "update_reservation_flights",
        r"\b(change|move back|downgrade|upgrade)\b",
    ),
    "flight_book": ("airline", "book_reservation", r"\b(book a|fly from|make a reservation)\b"),
    "flight_cancel": ("airline", "cancel_reservation", r"\bcancel"),
}
PHONE = "phone_support"
QUEUES = (*ACTIONS, PHONE)

_REQUEST = re.compile(
    r"(also|lastly|finally|and finally)?,? ?you (also |just |recently |mistakenly )*"
    r"(want|wish|would like|received|bought|ordered|need|are looking)\b|for (your|the)\b",
    re.IGNORECASE,
)
_ORDER = re.compile(r"#?W\d{7}")
_AIRPORT = re.compile(r"\b[A-Z]{3}\b")
_DAY = re.compile(r"\bMay \d+")
_FIRST_PERSON = (
    (re.compile(r"\b[Yy]ou are\b"), "I am"),
    (re.compile(r"\b[Yy]ou're\b"), "I'm"),
    (re.compile(r"\b([Tt]ells?|[Gg]ives?|[Ff]or|[Tt]o|upgrade) you\b"), r"\1 me"),
    (re.compile(r"\b[Yy]ou mobile\b"), "my mobile"),  # a slip in a shipped reason
    (re.compile(r"\b[Yy]ourself\b"), "myself"),
    (re.compile(r"\b[Yy]our\b"), "my"),
    (re.compile(r"\b[Yy]ou\b"), "I"),
    # Tickets speak of the customer in the third person.
    (re.compile(r"\b(The user has|They have)\b"), "I have"),
    (re.compile(r"\b(The user is|They are)\b"), "I am"),
    (re.compile(r"\btheir\b"), "my"),
)


def system_prompt() -> str:
    return SYSTEM_PROMPT.format(", ".join(QUEUES))


def sample_message(random: Random, person: people.Person) -> tuple[str, str]:
    """A customer's message and its queue."""
    # Queues with few shipped sentences come up less often, or their messages would repeat.
    queue = random.choices(QUEUES, weights=[len(requests()[q]) ** 0.5 for q in QUEUES])[0]
    request = _vary(random.choice(requests()[queue]), random)
    parts = [
        random.choice(("", "", "Hello.", "Hi there.", "Good morning.", "Dear team,")),
        request,
        random.choice(
            (
                "",
                f"My name is {person.name} and my zip code is {person.zip_code}.",
                f"I am {person.name} in zip code {person.zip_code}.",
                f"My e-mail is {person.email}.",
                f"I am {person.name}, please call me on {people.phone(random)}.",
            )
        ),
        random.choice(
            ("", "", "Thank you.", "I do not remember my order number.", "Please hurry.")
        ),
    ]
    if random.random() < 0.08:
        parts.append(_payment_line(random))
    return " ".join(part for part in parts if part), queue


@cache
def requests() -> dict[str, tuple[str, ...]]:
    """The shipped sentences of each queue, in the first person."""
    found = {queue: _labelled_by_action(queue) for queue in ACTIONS}
    found[PHONE] = _phone_problems()
    return {queue: tuple(sorted(sentences)) for queue, sentences in found.items()}


def _labelled_by_action(queue: str) -> set[str]:
    domain, action, _ = ACTIONS[queue]
    rivals = [re.compile(p, re.I) for name, (d, _, p) in ACTIONS.items() if d == domain]
    own = re.compile(ACTIONS[queue][2], re.I)
    found = set()
    for task in support_tasks(domain):
        expected = {step["name"] for step in task["evaluation_criteria"]["actions"] or []}
        if action not in expected:
            continue
        for sentence in _sentences(task["user_scenario"]["instructions"]["reason_for_call"]):
            named = [pattern for pattern in rivals if pattern.search(sentence)]
            if len(named) == 1 and own.search(sentence):
                found.add(_first_person(sentence))
    return found


def _phone_problems() -> set[str]:
    """What is wrong with the phone: the opening sentences of the telecom calls and tickets."""
    openings: set[str] = set()
    for task in support_tasks("telecom"):
        openings.update(_split(task["user_scenario"]["instructions"]["reason_for_call"])[:2])
        openings.update(_split(task["ticket"])[:2])
    symptoms = re.compile(r"MMS|No Service|mobile data|internet|phone service")
    return {_first_person(s) for s in openings if symptoms.search(s) and len(s) <= LONGEST_SENTENCE}


def _sentences(reason: str) -> list[str]:
    """The sentences of a reason that ask for something."""
    return [
        sentence
        for sentence in _split(reason)
        if len(sentence) <= LONGEST_SENTENCE and _REQUEST.match(sentence)
    ]


def _split(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])(?<!i\.e\.)\s+", " ".join(text.split()))


def _first_person(sentence: str) -> str:
    for pattern, replacement in _FIRST_PERSON:
        sentence = pattern.sub(replacement, sentence)
    return sentence[0].upper() + sentence[1:]


def _vary(sentence: str, random: Random) -> str:
    """Exchange the things a sentence names for others of the same kind."""
    orders, airports, products = _inventory()
    sentence = _ORDER.sub(lambda _: random.choice(orders), sentence)
    sentence = _DAY.sub(lambda _: f"May {random.randrange(1, 32)}", sentence)
    sentence = _AIRPORT.sub(
        lambda match: random.choice(airports) if match[0] in airports else match[0], sentence
    )
    return _product_pattern().sub(lambda _: random.choice(products), sentence)


@cache
def _inventory() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Orders, airports and products of the shipped databases."""
    shop, airline = support_database("retail"), support_database("airline")
    airports = {flight["origin"] for flight in airline["flights"].values()}
    products = {product["name"].lower() for product in shop["products"].values()}
    return tuple(sorted(shop["orders"])), tuple(sorted(airports)), tuple(sorted(products))


@cache
def _product_pattern() -> re.Pattern[str]:
    """A product by its full name or by its last word: customers say "camera" for "digital camera"."""
    products = _inventory()[2]
    names = {*products, *(product.split()[-1] for product in products)}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


def _payment_line(random: Random) -> str:
    if random.random() < 0.5:
        return f"I paid with card {random.choice(people.CARDS)}."
    return f"Please refund to {random.choice(people.IBANS)}."
