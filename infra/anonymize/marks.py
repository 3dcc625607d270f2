"""Cheap looks at a text's bytes, by classes of characters: what must be there before a pattern fits."""

from __future__ import annotations

DIGITS = b"0123456789"
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
IDENTITY_DIGITS = 5
"""The fewest digits of an identity number in a row, but for letters and what is written between."""
PHONE_DIGITS = 6
SECURITY_DIGITS = 9
CARD_DIGITS = 12


def classes(**characters: bytes) -> bytes:
    """A table for ``translate``: each character to the letter of its class, the others to a blank."""
    table = bytearray(b" " * 256)
    for letter, members in characters.items():
        for member in members:
            table[member] = ord(letter)
    return bytes(table)


SHORTEST_TOKEN = 20
"""Characters without a break in the shortest key or token, but for Slack's."""
SLACK = b"xox"
_ALPHANUMERIC = classes(a=LETTERS, d=DIGITS)
_NUMERIC = classes(d=DIGITS)
_UNBROKEN = classes(x=LETTERS + DIGITS + b"-_.+/=:~%\\")
_BETWEEN_DIGITS = LETTERS + b" ().-/+"


def may_hold_token(data: bytes) -> bool:
    """Whether there is as much without a break as in a key or token."""
    return b"x" * SHORTEST_TOKEN in data.translate(_UNBROKEN) or SLACK in data


def begins_account(data: bytes) -> bool:
    """Whether a word begins with two letters and two digits, as each IBAN does."""
    return b" aadd" in (b" " + data).translate(_ALPHANUMERIC)


def digit_runs(data: bytes) -> bytes:
    """A ``d`` for each digit, and a blank for whatever cannot stand inside of any number.

    Letters, blanks and the signs between the digits of numbers are left out: digits that a number of
    whatever kind has in a row are in a row here.
    """
    return data.translate(_NUMERIC, _BETWEEN_DIGITS)


def has_run(runs: bytes, digits: int) -> bool:
    return b"d" * digits in runs
