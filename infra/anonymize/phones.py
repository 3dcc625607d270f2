"""Phone numbers: with a country code, as they are written in a region, or where a word says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import phonenumbers

from infra.anonymize.finding import Finding

# Beyond this many checks in one text what has the shape of a number is taken for one.
MAX_CHECKS = 2000
CONTEXT_CHARACTERS = 40

_BEGIN = r"(?:(?<![\w+])|(?<=\\[nrt]))"  # also after "\n" in a text that was escaped twice
# The first looks ahead are for speed: they rule out most places.
_INTERNATIONAL = re.compile(
    r"(?=[+0])(?<![0-9+])(?:\+|(?<![\w.])(?<![0-9] )00(?=[1-9]))"
    r"[ (]{0,2}[0-9](?:[ ().\-/]{0,3}[0-9]){6,14}+(?![0-9])"
)
_NATIONAL = re.compile(
    r"(?=[0-9(])" + _BEGIN + r"(?<![0-9][.,/:-])(?<![-/])"
    r"(?![0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}(?![0-9]))"
    r"(?![0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{4}(?![0-9]))"
    r"(?:1[ .-]{1,2})?"
    r"(?:\([0-9]{1,5}\)[ .\-/]{0,2}|[0-9]{1,5}[ .\-/]{1,2})"
    r"[0-9]{2,8}(?:[ .\-/][0-9]{2,8}){0,4}(?![0-9])(?!:[0-9])"
)
_BARE = re.compile(
    r"(?=[0-9])" + _BEGIN + r"(?<![.,+/:-])[0-9]{7,12}(?![\w/])(?!-[0-9])(?![.,:][0-9])"
)
_EXTENSION = re.compile(r" ?(?:x|ext\.?) ?[0-9]{1,6}(?![0-9])")
_NORTH_AMERICA = frozenset({"US", "CA", "PR", "DO", "JM"})
_NORTH_AMERICAN = re.compile(r"1?[2-9][0-9]{2}[2-9][0-9]{6}")
_THREE_THREE_FOUR = re.compile(
    r"(?:1[ .-])?\(?[2-9][0-9]{2}\)?([ .-]{1,2})[2-9][0-9]{2}[.-][0-9]{4}"
)
_SAID_BEFORE = re.compile(
    r"(?i)(?:(?<![a-z])|(?<=\\[nrt]))(?:(?:tele)?phone|mobile|cell|fax|tel|whatsapp|hotline|sms|call|"
    r"ring|dial|reach|answer|text|message|(?:desk|office)(?=:))(?:s|ed|ing)?(?![a-z])"
    r"(?:(?! to )[^0-9]){0,30}\Z"  # to call somebody to a place gives its house number
)
_SAID_AFTER = re.compile(r"(?i)[ \t,;\-(]{0,3}(?:fax|mobile|cell|phone|office|home|work)(?![a-z])")


def find_phones(text: str, region: str) -> Iterator[Finding]:
    """Phone numbers, by libphonenumber; ``region`` is the one of numbers without a country code.

    A number of any region counts where words around it say that it is one: traffic comes from
    everywhere, and a wrong digit makes a number no less personal.
    """
    checks = 0
    for pattern in (_INTERNATIONAL, _NATIONAL, _BARE):
        where = None if pattern is _INTERNATIONAL else region
        for match in pattern.finditer(text):
            start, whole = match.span()
            end = whole
            while end - start >= 7:
                digits = _digits(text[start:end])
                if checks >= MAX_CHECKS:
                    if _may_be_phone(digits, where):
                        break
                elif _THREE_THREE_FOUR.fullmatch(text, start, end):
                    break
                elif _may_be_phone(digits, where):
                    checks += 1
                    if _is_phone(digits, where):
                        break
                # The last group may belong to something else: a count, a price.
                end = _previous_group(text, start, end)
            else:
                if where is None or not _said(text, start, whole):
                    continue
                end = whole
            if extension := _EXTENSION.match(text, end):
                end = extension.end()
            yield Finding("PHONE", start, end)


def _said(text: str, start: int, end: int) -> bool:
    if not 6 <= sum(map(str.isdigit, text[start:end])) <= 13:
        return False
    if extension := _EXTENSION.match(text, end):
        end = extension.end()
    before = text[max(0, start - CONTEXT_CHARACTERS) : start]
    return _SAID_BEFORE.search(before) is not None or _SAID_AFTER.match(text, end) is not None


def _digits(text: str) -> str:
    # "(0)" is what is dialled from inside the country only.
    found = re.sub(r"[^0-9+]", "", text.replace("(0)", ""))
    return f"+{found[2:]}" if found.startswith("00") else found


def _may_be_phone(digits: str, region: str | None) -> bool:
    """A cheap look that spares the library's."""
    if region in _NORTH_AMERICA:
        return _NORTH_AMERICAN.fullmatch(digits) is not None
    return 7 <= len(digits.lstrip("+")) <= 15


@lru_cache(maxsize=4096)
def _is_phone(digits: str, region: str | None) -> bool:
    try:
        number = phonenumbers.parse(digits, region)
    except phonenumbers.NumberParseException:
        return False
    if region is None:
        # The plus sign says what it is: the right length will do.
        return bool(phonenumbers.is_possible_number(number))
    return bool(phonenumbers.is_valid_number(number))


def _previous_group(text: str, start: int, end: int) -> int:
    while end > start and text[end - 1].isdigit():
        end -= 1
    while end > start and not text[end - 1].isdigit():
        end -= 1
    return end
