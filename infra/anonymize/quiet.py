"""Whether a JSON value can hold anything personal at all, told from its bytes: most hold nothing.

The recognizers look at each string of a value by itself. Here its whole serialized form is looked at
once, for marks without which none of them finds anything: rather one too many seen than one too few.
"""

from __future__ import annotations

import re

from infra.anonymize.marks import (
    DIGITS,
    IDENTITY_DIGITS,
    begins_account,
    classes,
    digit_runs,
    has_run,
    may_hold_token,
)
from infra.anonymize.placeholders import MAX_DEPTH
from infra.anonymize.recognizers import TOKEN_MARKS

HARDWARE_ADDRESS = 17
_MARKS = tuple(mark.encode() for mark in TOKEN_MARKS)
_ESCAPES = (b"\\n", b"\\t", b"\\r", b"\\b", b"\\f", b'\\"')
# Words of passwords and of fields that hold them, in small letters; the rest of them is looked for
# only where one of these is.
_WORDS = (b"pass", b"pwd", b"secret", b"private", b"token", b"api", b"authorization", b"bearer")
_SECRET = re.compile(
    rb"pass(?:w|phrase|code)|pwd|secret|private|authorization|bearer|api[_ -]?(?:key|token)|"
    rb"(?:access|auth|refresh)[_ -]?token"
)
_IN_ADDRESSES = (b"key=", b"sig=", b"signature=")
_COLONS = re.compile(rb":[0-9A-Fa-f]{0,4}:")
# Letters beyond ASCII that equal ASCII ones where case is ignored.
_TWINS = tuple(letter.encode() for letter in "ſKİı")
_HEXADECIMAL = classes(h=DIGITS + b"abcdefABCDEF:-")


def quiet(data: bytes) -> bool:
    """Whether no structured recognizer finds anything in any string or key of a value.

    Args:
        data: the value as JSON, as ``packed`` makes it. Time is linear in its length.
    """
    # Behind these, JSON in a string may hide any sign, or one that stands between digits.
    if b"@" in data or b"%40" in data or b"\\u" in data or b"\\/" in data:
        return False
    digits = len(data) - len(data.translate(None, DIGITS))
    if not data.isascii() and any(letter in data for letter in _TWINS):
        return False
    if _names_secret(data.lower()) or _holds_token(data):
        return False
    if digits and not _without_numbers(data, digits):
        return False
    return data.count(b"{") + data.count(b"[") < MAX_DEPTH


def _names_secret(low: bytes) -> bool:
    for word in _WORDS:
        if word in low:
            if _SECRET.search(low):
                return True
            break
    return b"=" in low and any(word in low for word in _IN_ADDRESSES)


def _holds_token(data: bytes) -> bool:
    """Whether a key, a token or a hardware address may be there."""
    if may_hold_token(data):
        for mark in _MARKS:
            if mark in data:
                return True
    many = data.count(b":") >= 5 or data.count(b"-") >= 5
    return many and b"h" * HARDWARE_ADDRESS in data.translate(_HEXADECIMAL)


def _without_numbers(data: bytes, digits: int) -> bool:
    """Whether no account, address of a machine or other number can be there."""
    if _COLONS.search(data) or (digits >= 4 and data.count(b".") >= 3):
        return False
    if digits < 2:
        return True
    if b"\\" in data:
        for escape in _ESCAPES:
            data = data.replace(escape, b"\n\n")
    return not begins_account(data) and not has_run(digit_runs(data), IDENTITY_DIGITS)
