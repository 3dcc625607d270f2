"""Keys, tokens and passwords. What grants access is never worth keeping."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from infra.anonymize.finding import Finding

MAX_KEY_CHARACTERS = 20_000

_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}-----")
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s]|\\n)*+")

# Anchored at the beginning of a word, so that a long word is looked at once.
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+")

_API_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,}+"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}+"
    r"|whsec_[A-Za-z0-9+/=]{20,}+"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
    r"|gh[pousr]_[A-Za-z0-9]{30,}+|github_pat_[A-Za-z0-9_]{30,}+"
    r"|glpat-[A-Za-z0-9_-]{20,}+"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}+"
    r"|AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"
    r"|ya29\.[A-Za-z0-9_-]{20,}+"
    r"|hf_[A-Za-z0-9]{30,}+|npm_[A-Za-z0-9]{30,}+|pypi-[A-Za-z0-9_-]{30,}+"
    r"|SG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}+"
    r"|(?:gsk_|r8_|sbp_|ntn_|secret_|lin_api_|shp(?:at|ca|pa|ss)_)[A-Za-z0-9]{20,}+"
    r"|(?:xai|pplx|tvly)-[A-Za-z0-9-]{20,}+"
    r"|do[opr]_v1_[a-f0-9]{40,}+|dapi[a-f0-9]{32}(?![a-f0-9])|dp\.[a-z]{2,5}\.[A-Za-z0-9]{30,}+"
    r"|sq0[a-z]{3}-[A-Za-z0-9_-]{20,}+|ATATT3[A-Za-z0-9_=-]{30,}+|AGE-SECRET-KEY-1[A-Z0-9]{50,}+"
    r"|(?:SK|AC)[0-9a-f]{32}(?![0-9A-Za-z])|key-[0-9a-z]{32}(?![0-9A-Za-z])"
    r"|[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"
    r")"
)
# The address itself is the key.
_SECRET_URL = re.compile(
    r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{20,}+)"
)
# Keys and passwords in connection strings, also of letters alone: "...;Pwd=letmein;...".
_CONNECTION = re.compile(
    r"(?i)(?<=[;&?])(?:password|pwd|accountkey|sharedaccesskey|sharedaccesssignature|sig|accesskey|"
    r"secret_?access_?key)=([^\s;&\"'<>]{4,400}+)"
)
_BEARER = re.compile(r"(?i)(?<![a-z])bearer[ \t]{1,4}([a-z0-9._~+/=-]{20,}+)")

_URL_CREDENTIALS = re.compile(r"://([^\s/?#@:<>\"']{0,256}+:[^\s/?#@<>\"']{1,256}+)@")

_PASSWORD = re.compile(
    r"(?i)(?<![a-z])(?:password|passwd|passphrase|passcode|pwd|secret|api[_ -]?key|"
    r"(?:access|auth|refresh|api)[_ -]?token)[\"']?"
    r"(?:\s{0,3}[:=]\s{0,3}|\s{1,3}is[:]?\s{1,3})[\"']?([^\s\"'<>,;]{4,200}+)"
)
_SECRET_NAME = re.compile(
    r"(?i)(?:[a-z]{1,20}[_-])?(?:password|passwd|passphrase|pwd|secret|client_?secret|api_?key|"
    r"access_?token|refresh_?token|auth_?token|private_?key|authorization)"
)


def find_private_keys(text: str) -> Iterator[Finding]:
    if "PRIVATE KEY" not in text:
        return
    place = 0
    while begin := _KEY_BEGIN.search(text, place):
        limit = begin.end() + MAX_KEY_CHARACTERS
        end = _KEY_END.search(text, begin.end(), limit)
        # One that was cut off still gives away what there is of it.
        end = end or _KEY_BODY.match(text, begin.end(), limit)
        place = end.end() if end else begin.end()
        yield Finding("PRIVATE_KEY", begin.start(), place)


def find_tokens(text: str) -> Iterator[Finding]:
    for match in _JWT.finditer(text):
        yield Finding("JWT", *match.span())
    for match in _API_KEY.finditer(text):
        yield Finding("API_KEY", *match.span())
    for match in _BEARER.finditer(text):
        yield Finding("API_KEY", *match.span(1))
    for match in _SECRET_URL.finditer(text):
        yield Finding("API_KEY", *match.span(1))


def find_url_credentials(text: str) -> Iterator[Finding]:
    """``user:password`` of a URL; the address around it stays readable."""
    for match in _URL_CREDENTIALS.finditer(text):
        yield Finding("CREDENTIALS", *match.span(1))


def find_passwords(text: str) -> Iterator[Finding]:
    for match in _CONNECTION.finditer(text):
        yield Finding("PASSWORD", *match.span(1))
    for match in _PASSWORD.finditer(text):
        value = match.group(1).rstrip(".!?)")
        # Prose such as "password is required" names no password.
        if len(value) >= 4 and not value.isalpha():
            yield Finding("PASSWORD", match.start(1), match.start(1) + len(value))


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret whatever it looks like."""
    return len(name) <= 60 and _is_secret_name(name)


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.fullmatch(name) is not None
