"""Notes about orders with the record they contain, from tau2's shop database.

Each note is written around one shipped order: its number, one of its products, the city it goes to
and, in most notes, the customer's e-mail address. The record is read off the same order, and the
note says everything that is in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from flows.demo.packaged import support_database

SYSTEM_PROMPT = (
    "You read notes about orders and return the order's number, the product, the city it goes to "
    "and the customer's e-mail address (null where the note has none) as JSON."
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "pattern": "^#W[0-9]{7}$"},
        "product": {"type": "string"},
        "city": {"type": "string"},
        "email": {"type": ["string", "null"]},
    },
    "required": ["order", "product", "city", "email"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "order_note", "strict": True, "schema": SCHEMA},
}
TEMPLATES = (
    "{customer} asks where the {product} of order {order} is. It goes to {city}.{contact}",
    "Order {order}: {product}, ship to {city}.{contact}",
    "Parcel for {customer} in {city} came back. Order {order}, {product}.{contact}",
    "Hello, my order {order} has not arrived. It is the {product} for {city}. {customer}.{contact}",
    "Call from {customer}, {city}, about the {product} ({order}).{contact}",
    "Please check order {order}. Customer {customer}, {product}, {city}.{contact}",
    "The {product} in {order} was damaged. Send a new one to {city}.{contact} Regards, {customer}",
    "{city} depot: {product} missing from {order}, customer {customer}.{contact}",
    "Invoice wanted for the {product}, order {order}, delivered in {city} to {customer}.{contact}",
    "Gift wrap the {product} of {order} please, it goes to {city}. {customer}.{contact}",
    "{customer} moved to {city}; order {order} with the {product} should follow.{contact}",
    "Re: {order}. When will the {product} reach {city}?{contact} {customer}",
)
CONTACTS = (" Mail: {email}", " Write to {email}", " Contact {email}", " Reply to {email}")
WITHOUT_EMAIL = 0.25


@dataclass(frozen=True)
class _Order:
    number: str
    city: str
    products: tuple[str, ...]
    customer: str
    email: str


def sample_note(random: Random) -> tuple[str, str]:
    """A note and its record as JSON text."""
    order = random.choice(_orders())
    product = random.choice(order.products)
    email = None if random.random() < WITHOUT_EMAIL else order.email
    note = random.choice(TEMPLATES).format(
        customer=order.customer,
        product=product,
        order=order.number,
        city=order.city,
        contact=f"{random.choice(CONTACTS).format(email=email)}." if email else "",
    )
    record = {"order": order.number, "product": product, "city": order.city, "email": email}
    return note, json.dumps(record, ensure_ascii=False, separators=(",", ":"))


@cache
def _orders() -> tuple[_Order, ...]:
    shop = support_database("retail")
    return tuple(
        _Order(
            number=order["order_id"],
            city=order["address"]["city"],
            products=tuple(item["name"] for item in order["items"]),
            customer=" ".join(shop["users"][order["user_id"]]["name"].values()),
            email=shop["users"][order["user_id"]]["email"],
        )
        for order in shop["orders"].values()
    )
