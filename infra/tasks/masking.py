"""Words of a text without what changes from call to call.

A structural signature must not depend on today's date, an order number or an e-mail address, and it
must come out alike for the live request (original values) and the logged one (placeholders). So a
whitespace-delimited token that carries *any* variable is dropped whole: ``mail:ann@example.org,``
and ``mail:<EMAIL_1>,`` both vanish, and so do all the tokens of ``+1 (555) 123-4567``. Dropping
rather than replacing makes the number of tokens of a value irrelevant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

MAX_WORDS = 4000
_CACHED_CHARACTERS = 20_000
_KNOWN_TOKENS = 16_384
_KNOWN_TOKEN_CHARACTERS = 60

_KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]{1,60}-----.*?(?:-----END [A-Z0-9 ]{1,60}-----|\Z)", re.S
)
_SECRET = re.compile(
    r"(?i)(?:pass(?:word|wd|phrase|code)|pwd|secret|api[_ -]?key|token)"
    r"(?:[\"']?\s{0,3}[:=]\s{0,3}|\s{1,3}is:?\s{1,3})[\"']?[^\s\"',;]{1,200}"
)
_SECRET_NAMES = ("pass", "pwd", "secret", "api", "token")
"""One of them is in everything that _SECRET finds."""
_LONG = 28
_VARIABLE = re.compile(
    r"""\d                                   # numbers, dates, times, ids, most keys
    |@|://                                   # addresses
    |<\s?[A-Z][A-Z_]*(?:[_:-][0-9A-Za-z]+)?> # placeholders, numbered, hashed or bare
    |\[(?:REDACTED|REMOVED)\]
    |[0-9a-fA-F]{0,4}:[0-9a-fA-F]{0,4}:      # addresses of machines without a decimal digit
    |[A-Za-z_+/=-]{28}                       # keys and tokens without a digit
    """,
    re.VERBOSE,
)
# fmt: off
_CALENDAR = frozenset({
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "mon", "tue",
    "wed", "thu", "fri", "sat", "sun", "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december", "jan", "feb", "mar", "apr",
    "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "am", "pm", "utc", "gmt", "ext",
    "extension",
})
# fmt: on
_TOKEN = re.compile(r"\S+")
_PLAIN_EDGE = ".,;!?\"'`(){}*"
"""Punctuation that is part of no variable."""
_EDGE = " \t\r\n.,;:!?\"'`()[]{}*#-"


def stable_words(text: str, limit: int = MAX_WORDS) -> Iterator[str]:
    """Lower-case words of ``text`` that are no per-call variables, at most ``limit`` of them.

    Punctuation at a word's edges is cut off, so that a value's disappearance leaves no trace. Time
    is linear in the text.
    """
    kept = 0
    if "-----BEGIN" in text:
        text = _KEY_BLOCK.sub(" ", text)
    low = text.lower()
    if any(name in low for name in _SECRET_NAMES):
        text = _SECRET.sub(" ", text)
    for token in _tokens(text):
        word = _known_word(token) if len(token) <= _KNOWN_TOKEN_CHARACTERS else _word(token)
        if word:
            yield word
            kept += 1
            if kept >= limit:
                return


def _word(token: str) -> str:
    """The word in a token, or nothing where it carries a variable."""
    # Letters alone are no variable, unless there are very many.
    plain = len(token) < _LONG and token.strip(_PLAIN_EDGE).isalpha()
    if not plain and _VARIABLE.search(token):
        return ""
    word = token.strip(_EDGE).lower()
    return "" if word in _CALENDAR else word


_known_word = lru_cache(maxsize=_KNOWN_TOKENS)(_word)


def _tokens(text: str) -> Iterable[str]:
    if len(text) <= _CACHED_CHARACTERS:
        return text.split()
    return (match.group() for match in _TOKEN.finditer(text))


def mask(text: str, limit: int = MAX_WORDS) -> str:
    """The stable words of a text, joined by single spaces."""
    # A system prompt comes again with every call.
    return _mask(text, limit) if len(text) <= _CACHED_CHARACTERS else _join(text, limit)


def _join(text: str, limit: int) -> str:
    return " ".join(stable_words(text, limit))


_mask = lru_cache(maxsize=512)(_join)
