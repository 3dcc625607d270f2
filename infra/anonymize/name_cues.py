"""Names told by what stands around them, where a recognizer of sentences sees nothing: forms, greetings,
addresses, who says what, and letters that English does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from infra.anonymize.finding import Finding
from infra.anonymize.kinds import ORGANIZATION, PERSON, PLACE

_UPPER = "[^\\W\\d_a-z]"
_LINKS = "(?:van|von|de|der|den|del|la|bin|al|da|dos|du|ter)"
# An initial or a capitalised word; parts such as "van der" may stand between two of them.
_WORD = rf"(?:{_UPPER}(?:[^\W\d_]?\.|[^\W\d_]*(?:['’-][^\W\d_]+)*))"
MORE = re.compile(rf"(?: {_LINKS})*(?: {_WORD})")
_NAME = rf"{_WORD}(?:(?: {_LINKS})*(?: {_WORD})){{0,3}}"
_TWO = rf"{_WORD}(?:(?: {_LINKS})*(?: {_WORD})){{1,3}}"
CUED = re.compile(
    r"(?<![^\W_])(?:(?i:mr|mrs|ms|miss|mx|dr|prof|sir|madam)\.? "
    r"|(?i:(?:(?:first|last|full|given|family|maiden|sur)[ _-]?)?name(?: is|:|\?| =|=))\s{1,8}"
    r"|(?i:hi|hello|dear|hey|thanks|regards|sincerely|signed|directed by|written by|attn)[,:]?\s{1,8}"
    r"|(?i:i am|i'm|this is|called|named|call me)\s"
    r"|(?i:kid|child|son|daughter|friend|wife|husband|brother|sister|mother|father|mom|dad|cousin|uncle"
    r"|aunt|boss|colleague|neighbou?r),? "
    r"|(?i:shouted at|yelled at|married to|says|said|asked|replied),? )"
    rf"({_NAME})"
)
# What follows a title is a name however it is written.
TITLED = re.compile(r"(?<![^\W_])(?i:mr|mrs|ms|dr)\. ([^\W\d_]{3,30})")
# One word after "by" may be a product, two are somebody's name.
_BY = re.compile(rf"(?<![^\W_])by ({_TWO})")
_SPEAKER = re.compile(rf"(?m)^[ \t]{{0,8}}({_NAME}): ?[\"“«]")
# Where somebody lives or goes to.
_WHERE = re.compile(
    r"(?<![^\W_])(?i:liv(?:e|es|ed|ing)|born|based|headquartered|resid(?:e|es|ed|ing)|mov(?:e|es|ed|ing)"
    r"|fl(?:y|ies|ew|own|ying|ights?)|travell?(?:s|ed|ing)?|relocat(?:e|es|ed|ing)|home city"
    r"|home town|i'm|i am|stay(?:s|ed|ing)?|arriv(?:e|es|ed|ing)|trip)"
    rf"(?: (?:here|back|over|home))?(?: (?:in|from|to|near)|(?<=city)|(?<=town)) ({_NAME})"
)
# The town behind street and number: "lives at 12 Elm Street 4, Springfield".
_TOWN = re.compile(
    r"(?<![^\W_])(?i:(?:lives|living|located) at|address(?: is|:))\s{1,3}"
    rf"(?=\S{{0,9}}\d)[^,\n]{{4,60}}, ?({_NAME})"
)
# A firm by its legal form: "Larsen & Toubro Limited". One may begin after each mark inside a word: so
# many characters of it are read each time, and not all of them.
_FIRM_WORD = rf"{_UPPER}[\w.'’/-]{{0,40}}"
FIRM = re.compile(
    rf"(?<![^\W_])({_FIRM_WORD}(?: (?:{_FIRM_WORD}|&)){{0,5}}?"
    r",? ?(?i:inc|incorporated|ltd|limited|llc|llp|plc|corp|corporation|gmbh|pty|oyj|s\.p\.a|l\.p"
    r"|(?-i:SE|AG|SA|S\.A|NV|N\.V|KG|AB|ASA|SpA|Co)(?=[.,;:!?'’\s]|\Z))(?![^\W_])"
    r"(?:\.? ?(?i:ltd|inc|kg|plc)(?![^\W_]))?\.?)"
)
_FOREIGN = re.compile(rf"(?<![^\W_]){_NAME}")
_MAX_FOREIGN_SHARE = 0.1
"""Of a text's letters that are not ASCII; beyond, it is no English text."""
# Capitalised by their place in a sentence or by custom, and nobody's name.
# fmt: off
NO_NAMES = frozenset({
    "a", "an", "and", "api", "as", "assistant", "bot", "call", "can", "could", "customer", "do",
    "everyone", "for", "from", "guys", "have", "he", "hello", "help", "here", "hi", "how", "i", "if",
    "in", "is", "it", "json", "my", "no", "not", "of", "ok", "okay", "on", "please", "sir", "so",
    "sorry", "sure", "support", "team", "thank", "thanks", "that", "the", "there", "they", "this",
    "to", "we", "what", "when", "where", "who", "why", "will", "yes", "you", "your", "all", "again",
    "iban", "ssn", "asap", "url", "usd", "eur", "gmail", "email", "e-mail", "phone", "address", "id",
})
# fmt: on


def by_cue(text: str) -> Iterator[Finding]:
    """What the words around it tell to be a name."""
    for kind, patterns in _CUES:
        for pattern in patterns:
            for match in pattern.finditer(text):
                if match.group(1).split()[0].rstrip(".").lower() not in NO_NAMES:
                    yield Finding(kind, *match.span(1))


_CUES = (
    (PERSON, (CUED, TITLED, _BY, _SPEAKER)),
    (PLACE, (_WHERE, _TOWN)),
    (ORGANIZATION, (FIRM,)),
)


def foreign(text: str) -> Iterator[Finding]:
    """Capitalised words with letters that English does not have, in a text that is mostly English."""
    if text.isascii():
        return
    letters = sum(map(str.isalpha, text))
    odd = sum(letter.isalpha() and not letter.isascii() for letter in text)
    if odd > max(4, _MAX_FOREIGN_SHARE * letters):
        return
    for match in _FOREIGN.finditer(text):
        start, said = match.start(), match.group()
        while said and said.split()[0].lower() in NO_NAMES:
            first = len(said.split()[0]) + 1
            start, said = start + first, said[first:]
        if said[:1].isupper() and any(letter.isalpha() and not letter.isascii() for letter in said):
            yield Finding(PERSON, start, start + len(said))


class _Line(NamedTuple):
    start: int
    text: str


_MARKS = " \t}>|*#-•"
_STREET = re.compile(
    rf"(?=[^\n]{{0,80}}?\d)(?:\d{{1,6}}[A-Za-z]?,? (?=[^\n]{{0,60}}[^\W\d_]{{3}})[^\n:;=]{{3,80}}"
    rf"|{_WORD}[^\n:;=.!?]{{2,60}} \d{{1,6}}[a-z]?)"
)
_UNIT = re.compile(r"(?i:suite|apt|apartment|unit|floor|p\.? ?o\.? box)\b\.? *#?[\w-]{1,8}")
_TOWN_LINE = re.compile(
    rf"(?:[\d-]{{3,10}} )?({_NAME})(?:,? (?:[A-Z]{{2}}))?(?:,? [A-Z\d][A-Z\d -]{{2,9}})?"
)
_MAX_LINES_BELOW = 5


def by_address(text: str) -> Iterator[Finding]:
    """Of an address written in lines: who lives there, town and country."""
    lines = list(_lines(text))
    for number, line in enumerate(lines):
        if not _STREET.fullmatch(line.text):
            continue
        found = []
        numbers = len(re.findall(r"\d+", line.text))
        for below in lines[number + 1 : number + 1 + _MAX_LINES_BELOW]:
            if _UNIT.fullmatch(below.text):
                numbers += 1
                continue
            match = _TOWN_LINE.fullmatch(below.text)
            if match is None:
                break
            numbers += any(map(str.isdigit, below.text))
            found.append(Finding(PLACE, below.start + match.start(1), below.start + match.end(1)))
        if numbers < 2:  # a house's number alone may count anything
            continue
        yield from found
        for above in lines[max(0, number - 2) : number]:
            if re.fullmatch(_TWO, above.text):
                yield Finding(PERSON, above.start, above.start + len(above.text))


def _lines(text: str) -> Iterator[_Line]:
    """The lines that are not empty, without marks before and blanks behind."""
    place = 0
    for line in text.split("\n"):
        said = line.lstrip(_MARKS)
        if said:
            yield _Line(place + len(line) - len(said), said.rstrip())
        place += len(line) + 1
