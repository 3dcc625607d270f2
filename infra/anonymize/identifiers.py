"""Mail addresses, cards, accounts and social security numbers, with checksums."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import iban, luhn
from stdnum.us import ssn

from infra.anonymize.finding import Finding

_AT = re.compile(r"@|%40")
_LOCAL_REVERSED = re.compile(r"[\w.!#$%&'*+/?^{|}~`-]{1,64}")
_GLUED = re.compile(r"([A-Za-z]{2,24})[0-9_-]")
_DOMAIN = re.compile(r"[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")

_CARD = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?=([1-6](?:[0-9]{11,18}"
    r"|[0-9]{3}[ .-][0-9]{4}[ .-][0-9]{4}[ .-][0-9]{1,4}(?:[ .-][0-9]{1,3})?"
    r"|[0-9]{3}[ .-][0-9]{6}[ .-][0-9]{4,5}))(?![0-9@]))"
)
# The last two are Maestro's of 12 to 14 digits and JCB's of 15.
_CARD_RANGE = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"
    r"|5[0-8][0-9]{14}|2[2-7][0-9]{14}|6[0-9]{15,18}|3[47][0-9]{13}|3[068][0-9]{12}|35[0-9]{14}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{8,10}|(?:2131|1800)[0-9]{11}"
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[0-9]{2}(?=[ -]?[A-Za-z0-9])")
# Characters of an IBAN by country, from the registry of ISO 13616.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
_IBAN_REST = {
    length: re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{length - 4}}}(?![A-Za-z0-9])")
    for length in set(_IBAN_LENGTHS.values())
}
_SSN = re.compile(r"(?<![\w-])[0-9]{3}([- ])[0-9]{2}\1[0-9]{4}(?![\w-])")


def find_mail(text: str) -> Iterator[Finding]:
    place = 0
    for sign in _AT.finditer(text):
        # From the sign outwards, each way a bounded distance: no text takes more than linear time.
        left = _LOCAL_REVERSED.match(text[max(place, sign.start() - 64) : sign.start()][::-1])
        right = _DOMAIN.match(text, sign.end(), sign.end() + 255)
        if left is None or right is None:
            continue
        local = left.group()[::-1]
        before = sign.start() - len(local)
        if _escaped(text, before):
            local = local[1:]  # of "\\n" in a text that was escaped twice
        local = local.lstrip(".'`|{*/&?#!")
        domain = _trim_domain(right.group())
        if local and domain:
            place = sign.end() + len(domain)
            yield Finding("EMAIL", sign.start() - len(local), place)


def find_cards(text: str) -> Iterator[Finding]:
    for match in _CARD.finditer(text):
        found = match.group(1)
        digits = re.sub(r"[ .-]", "", found)
        if _CARD_RANGE.fullmatch(digits) and luhn.is_valid(digits):
            yield Finding("CARD", match.start(1), match.end(1))


def find_accounts(text: str) -> Iterator[Finding]:
    """IBANs. The words that follow one in a sentence are not part of it."""
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match.group(1).upper())
        rest = _IBAN_REST[length].match(text, match.end()) if length else None
        if rest and _is_iban(text[match.start() : rest.end()]):
            yield Finding("IBAN", match.start(), rest.end())


def find_social_security(text: str) -> Iterator[Finding]:
    for match in _SSN.finditer(text):
        if ssn.is_valid(re.sub(r"[- ]", "", match.group())):
            yield Finding("US_SSN", *match.span())


def _trim_domain(found: str) -> str:
    labels = found.rstrip("-_").split(".")
    while len(labels) > 1:
        last = labels[-1]
        if (len(last) >= 2 and last.isalpha()) or last.lower().startswith("xn--"):
            return ".".join(labels)
        # A number may follow without a space.
        if glued := _GLUED.match(last):
            return ".".join([*labels[:-1], glued.group(1)])
        labels.pop()
    return ""


def _escaped(text: str, place: int) -> bool:
    return place > 0 and text[place - 1] == "\\" and text[place] in "nrt"


def _is_iban(text: str) -> bool:
    compact = re.sub(r"[ -]", "", text).upper()
    turned = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return int(turned) % 97 == 1 and bool(iban.is_valid(compact))
