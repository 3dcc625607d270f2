"""Rewrite the strings inside JSON text without touching anything else of it.

Tool arguments and tool results are JSON in strings. Parsing and writing them anew would change
spacing, the spelling of numbers and repeated keys; replacing literal by literal changes none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

# A string with what tells a key (its colon), or a whole number long enough to be personal.
_LITERAL = re.compile(r'("(?:[^"\\]++|\\.)*+")(\s*:)?|(?<![\w.+-])([0-9]{7,19})(?![\w.])')
_BLANK = " \t\r\n"


def looks_like_json(text: str) -> bool:
    """Whether the text is a JSON object, array or string; bare numbers and words are not meant."""
    body = text.strip(_BLANK)
    if len(body) < 2 or body[0] + body[-1] not in ("{}", "[]", '""'):
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def rewrite(
    text: str,
    change_key: Callable[[str], str],
    change_string: Callable[[str, str], str],
    change_number: Callable[[str, int], object],
) -> str:
    """The same JSON with changed literals; unchanged ones keep their spelling.

    Args:
        text: valid JSON (see ``looks_like_json``).
        change_key: a key to its replacement.
        change_string: the key it stands under, and the string, to its replacement.
        change_number: the key, and a whole number of 7 to 19 digits, to its replacement.
    """
    name = ""

    def change(match: re.Match[str]) -> str:
        nonlocal name
        if match.group(3) is not None:
            number = int(match.group(3))
            changed = change_number(name, number)
            return match.group() if changed == number else json.dumps(changed, ensure_ascii=False)
        old: str = json.loads(match.group(1))
        if match.group(2) is not None:
            name = old
            new = change_key(old)
        else:
            new = change_string(name, old)
        if new == old:
            return match.group()
        return json.dumps(new, ensure_ascii=False) + (match.group(2) or "")

    return _LITERAL.sub(change, text)
