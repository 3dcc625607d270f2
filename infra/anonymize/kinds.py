"""The kinds of personal data, as placeholders, settings and counts name them."""

from __future__ import annotations

PERSON, PLACE, ORGANIZATION = "PERSON", "PLACE", "ORGANIZATION"
NAME_KINDS = frozenset({PERSON, PLACE, ORGANIZATION})
KINDS = frozenset(
    {
        "API_KEY",
        "CARD",
        "CREDENTIALS",
        "EMAIL",
        "IBAN",
        "IP_ADDRESS",
        "JWT",
        "MAC_ADDRESS",
        "NATIONAL_ID",
        "PASSWORD",
        "PHONE",
        "PRIVATE_KEY",
        "US_SSN",
    }
)
"""The structured ones."""
EVERY_KIND = KINDS | NAME_KINDS
