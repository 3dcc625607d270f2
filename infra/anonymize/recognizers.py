"""Every structured recognizer, in order of trust."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infra.anonymize.credentials import (
    find_passwords,
    find_private_keys,
    find_tokens,
    find_url_credentials,
)
from infra.anonymize.finding import Finding, Recognizer, settle
from infra.anonymize.identifiers import (
    find_accounts,
    find_cards,
    find_mail,
    find_phones,
    find_social_security,
)
from infra.anonymize.network import find_addresses, find_hardware_addresses

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
        "PASSWORD",
        "PHONE",
        "PRIVATE_KEY",
        "US_SSN",
    }
)


def structured(region: str) -> tuple[Recognizer, ...]:
    """The recognizers, the most trusted first: what has a fixed form before what is guessed."""
    return (
        find_private_keys,
        find_tokens,
        find_url_credentials,
        find_mail,
        find_accounts,
        find_cards,
        find_hardware_addresses,
        find_addresses,
        find_social_security,
        find_passwords,
        partial(find_phones, region=region),
    )


def find(text: str, recognizers: Sequence[Recognizer]) -> list[Finding]:
    """What the recognizers see, without overlaps, in order of place."""
    return settle(recognizer(text) for recognizer in recognizers)
