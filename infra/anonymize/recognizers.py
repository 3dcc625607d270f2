"""Every structured recognizer, in order of trust."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


TOKEN_MARKS = (
    *("eyJ", "sk-", "sk_", "rk_", "pk_", "whsec_", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_"),
    *("ghr_", "github_pat_", "glpat-", "xox", "AIza", "ya29.", "hf_", "npm_", "pypi-", "SG."),
)
_PASSWORD_WORDS = ("pass", "pwd", "secret", "api", "token")
_DIGITS = b"0123456789"

Needed = Callable[[str, int], bool]


class Structured:
    """The recognizers, the most trusted first: what has a fixed form before what is guessed.

    Most texts hold nothing of most kinds. Each recognizer comes with a cheap condition on the text and
    on the number of its (ASCII) digits, without which it finds nothing.
    """

    def __init__(self, region: str) -> None:
        self._all: tuple[tuple[Recognizer, Needed], ...] = (
            (find_private_keys, lambda text, _: "PRIVATE KEY" in text),
            (find_tokens, lambda text, _: _may_hold_token(text)),
            (find_url_credentials, lambda text, _: "://" in text and "@" in text),
            (find_mail, lambda text, _: "@" in text or "%40" in text),
            (find_accounts, lambda _, digits: digits >= 2),
            (find_cards, lambda _, digits: digits >= 13),
            (find_hardware_addresses, lambda text, _: _may_hold_hardware_address(text)),
            (find_addresses, lambda text, digits: _may_hold_address(text, digits)),
            (find_social_security, lambda _, digits: digits >= 9),
            (find_passwords, lambda text, _: _may_hold_password(text)),
            (partial(find_phones, region=region), lambda _, digits: digits >= 7),
        )

    def every(self) -> tuple[Recognizer, ...]:
        return tuple(recognizer for recognizer, _ in self._all)

    def worth_asking(self, text: str) -> tuple[Recognizer, ...]:
        """Those that may find something in this text."""
        plain = text.encode("ascii", "ignore")
        digits = len(plain) - len(plain.translate(None, _DIGITS))
        return tuple(recognizer for recognizer, needed in self._all if needed(text, digits))


def structured(region: str) -> tuple[Recognizer, ...]:
    """All of them, in their order."""
    return Structured(region).every()


def find(text: str, recognizers: Sequence[Recognizer]) -> list[Finding]:
    """What the recognizers see, without overlaps, in order of place."""
    return settle(recognizer(text) for recognizer in recognizers)


def _may_hold_token(text: str) -> bool:
    for mark in TOKEN_MARKS:
        if mark in text:
            return True
    return "bearer" in text.lower()


def _may_hold_password(text: str) -> bool:
    if not text.isascii():
        # Letters beyond ASCII may equal ASCII ones where case is ignored.
        return True
    low = text.lower()
    return any(word in low for word in _PASSWORD_WORDS)


def _may_hold_hardware_address(text: str) -> bool:
    return text.count(":") >= 5 or text.count("-") >= 5


def _may_hold_address(text: str, digits: int) -> bool:
    return (digits >= 4 and text.count(".") >= 3) or text.count(":") >= 2
