"""National identity numbers, by their checksums and dates (python-stdnum knows each country's).

A number stands by itself where its form and checks leave hardly a random one valid; one with a single
check digit counts only as it is usually written (``123.456.789-09``), or after a word that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from itertools import chain

from infra.anonymize.finding import Finding

KIND = "NATIONAL_ID"
CONTEXT_CHARACTERS = 40
MAX_CHECKS = 2000


@dataclass(frozen=True)
class _Form:
    """How one country's number is written.

    Attributes:
        module: of python-stdnum.
        alone: what is one wherever it stands; None: never.
        named: what is one after a word that names it, or None.
    """

    module: str
    alone: re.Pattern[str] | None
    named: re.Pattern[str] | None = None


def _form(module: str, alone: str | None, named: str | None = None) -> _Form:
    return _Form(
        module,
        re.compile(alone, re.I) if alone else None,
        re.compile(named, re.I) if named else None,
    )


_YYMMDD = r"\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_DDMMYY = r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d"
_FORMS = (
    _form("fr.nir", r"[1-478]\d{4}[\dab]\d{9}|[1-478] \d\d \d\d [\dab]{2} \d{3} \d{3} \d\d"),
    _form("it.codicefiscale", r"[a-z]{6}[\dl-v]{2}[a-ehlmprst][\dl-v]{2}[a-z][\dl-v]{3}[a-z]"),
    _form("es.dni", r"\d{8}-?[a-z]"),
    _form("es.nie", r"[xyz]-?\d{7}-?[a-z]"),
    _form("fi.hetu", rf"{_DDMMYY}[-+a-fu-y]\d{{3}}[\da-y]"),
    _form("mx.curp", r"[a-z]{4}\d{6}[hmx][a-z]{5}[\da-z]\d"),
    _form("cn.ric", r"[1-9]\d{5}(?:19|20)\d{9}[\dx]"),
    _form("ch.ssn", r"756\.\d{4}\.\d{4}\.\d\d|756\d{10}"),
    _form("no.fodselsnummer", rf"{_DDMMYY} ?\d{{5}}"),
    _form("tr.tckimlik", r"[1-9]\d{10}"),
    _form("pl.pesel", None, r"\d{11}"),
    _form("se.personnummer", rf"(?:19|20)?{_YYMMDD}[-+]\d{{4}}", rf"(?:19|20)?{_YYMMDD}\d{{4}}"),
    _form("dk.cpr", rf"{_DDMMYY}-\d{{4}}", rf"{_DDMMYY}\d{{4}}"),
    _form("be.nn", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", r"\d{11}|\d{6}[- ]\d{3}[- ]\d\d"),
    _form("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d", r"\d{11}|\d{9}-\d\d"),
    _form("cl.rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dk]|\d{7,8}-k", r"\d{7,8}-?[\dk]"),
    _form("ar.cuit", r"\d\d-\d{8}-\d", r"\d{11}"),
    _form("kr.rrn", rf"{_YYMMDD}-[0-9]\d{{6}}", r"\d{13}"),
    _form("in_.aadhaar", r"[2-9]\d{3} \d{4} \d{4}", r"[2-9]\d{11}|[2-9]\d{3}-\d{4}-\d{4}"),
    _form("in_.pan", r"[a-z]{3}[abcfghjlpt][a-z]\d{4}[a-z]"),
    _form("za.idnr", None, r"\d{13}"),
    _form("ro.cnp", None, r"[1-9]\d{12}"),
    _form("bg.egn", None, r"\d{10}"),
    _form("cz.rc", r"\d{6}/\d{4}", r"\d{6}/?\d{3,4}"),
    _form("gr.amka", None, r"\d{11}"),
    _form("ee.ik", None, r"[1-8]\d{10}"),
    _form("lt.asmens", None, r"[1-8]\d{10}"),
    _form("hr.oib", None, r"\d{11}"),
    _form("si.emso", None, r"\d{13}"),
    _form("is_.kennitala", rf"{_DDMMYY}-\d{{4}}", rf"{_DDMMYY}\d{{4}}"),
    _form("pt.cc", r"\d{8} ?\d ?[a-z\d]{2}\d"),
    _form("ie.pps", None, r"\d{7}[a-w][a-iw]?"),
    _form("gb.nhs", None, r"\d{3}[ -]?\d{3}[ -]?\d{4}"),
    _form("de.idnr", None, r"[1-9]\d{10}|[1-9]\d \d{3} \d{3} \d{3}"),
    _form("nl.bsn", None, r"\d{9}|\d{4}\.\d\d\.\d{3}"),
    _form("at.vnr", None, r"\d{4} ?\d{6}"),
    _form("ca.sin", None, r"\d{3}[- ]?\d{3}[- ]?\d{3}"),
    _form("us.itin", r"9\d\d-[5-9]\d-\d{4}", r"9\d{8}"),
    _form("us.ssn", None, r"\d{9}"),
    _form("il.idnr", None, r"\d{9}"),
    _form("jp.in_", None, r"\d{12}|\d{4}[ -]\d{4}[ -]\d{4}"),
    _form("my.nric", rf"{_YYMMDD}-\d\d-\d{{4}}", rf"{_YYMMDD}\d{{6}}"),
    _form("th.pin", r"\d-\d{4}-\d{5}-\d\d-\d", r"\d{13}"),
    _form("id.nik", None, r"\d{16}"),
    _form("ua.rntrc", None, r"\d{10}"),
    _form("ec.ci", None, r"\d{10}"),
    _form("au.tfn", None, r"\d{3} ?\d{3} ?\d{2,3}"),
    _form("nz.ird", None, r"\d{2,3}-?\d{3}-?\d{3}"),
)
# British insurance numbers have no check digit; two letters, six digits and a letter are telling.
_INSURANCE = re.compile(
    r"(?=[A-Z]{2})(?<![A-Za-z0-9])(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]"
    r"( ?)[0-9]{2}\1[0-9]{2}\1[0-9]{2}\1[A-D](?![A-Za-z0-9])"
)
_ANY_FORM = re.compile(
    "|".join(one.pattern for form in _FORMS for one in (form.alone, form.named) if one), re.I
)
_BEFORE_DIGITS = 20
"""No number has as many characters before its first digit."""
# One block of letters and digits, perhaps in parts; or groups with spaces between.
_BLOCK = re.compile(
    r"(?<![\w.+])(?<![0-9][/,:-])(?=[0-9A-Za-z./+-]{7})"
    rf"(?=[A-Za-z./+-]{{0,{_BEFORE_DIGITS}}}[0-9])"
    r"[0-9A-Za-z]{1,18}(?:[-./+][0-9A-Za-z]{1,8}){0,6}(?![\w])"
)
_GROUPS = re.compile(r"(?=[0-9])(?<![\w.+])[0-9]{1,8}(?: [0-9A-Za-z]{1,6}){1,7}(?![\w])")
_NAMED = re.compile(
    r"(?i)(?<![a-z])(?:ssn|itin|tin|tax|fiscal|steuer|identi|passport|national|social|insurance|"
    r"citizen|resident|personal (?:id|number|code)|id (?:card|number|no)|nhs|sin|nir|dni|nie|pesel|"
    r"personnummer|cpr|hetu|cpf|rut|cuit|cuil|rrn|aadhaar|pan|cnp|egn|rodn|amka|isikukood|asmens|"
    r"oib|emso|jmbg|kennitala|nif|pps|bsn|svnr|curp|nric|nik|tfn|ird|kimlik|ahv|avs|my number)"
)


def find_national_ids(text: str) -> Iterator[Finding]:
    for match in _INSURANCE.finditer(text):
        yield Finding(KIND, *match.span())
    checks = 0
    for match in chain(_BLOCK.finditer(text), _GROUPS.finditer(text)):
        start, end = match.span()
        if sum(map(str.isdigit, text[start:end])) < 5:
            continue
        checks += 1
        if checks > MAX_CHECKS:
            return
        named: bool | None = None
        # Words may stand around it with the same spaces between.
        for a, b in _parts(text, start, end):
            if _ANY_FORM.fullmatch(text, a, b) is None:
                continue
            if named is None:
                before = max(0, start - CONTEXT_CHARACTERS)
                named = _NAMED.search(text, before, start) is not None
            if _is_one(text[a:b], named):
                yield Finding(KIND, a, b)
                break


def _parts(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The whole, then what is left of it without the groups before the first or after the last."""
    yield start, end
    spaces = [place for place in range(start, end) if text[place] == " "]
    for begin in [start, *(place + 1 for place in spaces)]:
        for stop in [end, *reversed(spaces)]:
            if stop - begin >= 7 and (begin, stop) != (start, end):
                yield begin, stop


@lru_cache(maxsize=8192)
def _is_one(text: str, named: bool) -> bool:
    for form in _FORMS:
        fits = form.alone is not None and form.alone.fullmatch(text)
        fits = fits or (named and form.named is not None and form.named.fullmatch(text))
        if fits and _check(form.module)(text):
            return True
    return False


@cache
def _check(module: str) -> Callable[[str], bool]:
    found: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return found
