"""Every structured recognizer, in order of trust."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infra.anonymize.credentials import (
    find_passwords,
    find_private_keys,
    find_tokens,
    find_url_credentials,
)
from infra.anonymize.finding import Finding, Recognizer, gaps, settle
from infra.anonymize.identifiers import (
    find_accounts,
    find_cards,
    find_mail,
    find_social_security,
)
from infra.anonymize.marks import (
    CARD_DIGITS,
    DIGITS,
    IDENTITY_DIGITS,
    PHONE_DIGITS,
    SECURITY_DIGITS,
    begins_account,
    digit_runs,
    has_run,
    may_hold_token,
)
from infra.anonymize.national_ids import find_national_ids
from infra.anonymize.network import find_addresses, find_hardware_addresses
from infra.anonymize.phones import find_phones

TOKEN_MARKS = (
    *("eyJ", "sk-", "sk_", "rk_", "pk_", "whsec_", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_"),
    *("ghr_", "github_pat_", "glpat-", "xox", "AIza", "ya29.", "hf_", "npm_", "pypi-", "SG."),
    *(
        "gsk_",
        "r8_",
        "sbp_",
        "ntn_",
        "secret_",
        "lin_api_",
        "shp",
        "xai-",
        "pplx-",
        "tvly-",
        "_v1_",
    ),
    *("dapi", "dp.", "sq0", "ATATT3", "AGE-SECRET", "SK", "AC", "key-", ":AA", "hooks.slack"),
)
_PASSWORD_WORDS = ("pass", "pwd", "secret", "api", "token", "key=", "sig=", "signature=")
MAX_ROUNDS = 2


class Structured:
    """The recognizers, the most trusted first: what has a fixed form before what is guessed."""

    def __init__(self, region: str) -> None:
        self._find_phones: Recognizer = partial(find_phones, region=region)

    def every(self) -> tuple[Recognizer, ...]:
        return (
            find_private_keys,
            find_tokens,
            find_url_credentials,
            find_accounts,
            find_cards,
            find_mail,
            find_hardware_addresses,
            find_addresses,
            find_social_security,
            find_national_ids,
            find_passwords,
            self._find_phones,
        )

    def worth_asking(self, text: str) -> list[Recognizer]:
        """Those that may find something in this text, in their order.

        Most texts hold nothing of most kinds, and each recognizer finds nothing without a mark that is
        cheap to look for.
        """
        plain = text.encode("ascii", "replace")
        digits = len(plain) - len(plain.translate(None, DIGITS))
        runs = digit_runs(plain) if digits >= IDENTITY_DIGITS else b""
        low = text.lower()
        asked: list[Recognizer] = []
        if "PRIVATE KEY" in text:
            asked.append(find_private_keys)
        broken = text.isascii() and not may_hold_token(plain)
        if not broken and ("bearer" in low or any(map(text.__contains__, TOKEN_MARKS))):
            asked.append(find_tokens)
        if "@" in text and "://" in text:
            asked.append(find_url_credentials)
        if digits >= 2 and begins_account(plain):
            asked.append(find_accounts)
        if has_run(runs, CARD_DIGITS):
            asked.append(find_cards)
        if "@" in text or "%40" in text:
            asked.append(find_mail)
        colons = text.count(":")
        if colons >= 5 or text.count("-") >= 5:
            asked.append(find_hardware_addresses)
        if colons >= 2 or (digits >= 4 and text.count(".") >= 3):
            asked.append(find_addresses)
        if has_run(runs, SECURITY_DIGITS):
            asked.append(find_social_security)
        if has_run(runs, IDENTITY_DIGITS):
            asked.append(find_national_ids)
        # Letters beyond ASCII may equal ASCII ones where case is ignored.
        if not text.isascii() or any(map(low.__contains__, _PASSWORD_WORDS)):
            asked.append(find_passwords)
        if has_run(runs, PHONE_DIGITS):
            asked.append(self._find_phones)
        return asked


def structured(region: str) -> tuple[Recognizer, ...]:
    """All of them, in their order."""
    return Structured(region).every()


def find(text: str, recognizers: Sequence[Recognizer], rounds: int = MAX_ROUNDS) -> list[Finding]:
    """What the recognizers see, without overlaps, in order of place.

    Where a finding had to give way to a more trusted one, what is left of the text there is looked at
    again: a mail address may stand between two card numbers without a space.
    """
    found, given_way = settle(recognizer(text) for recognizer in recognizers)
    if not given_way or not rounds:
        return found
    more: list[Finding] = []
    for start, end in gaps(found, len(text)):
        if any(lost.start < end and lost.end > start for lost in given_way):
            inside = find(text[start:end], recognizers, rounds - 1)
            more += [Finding(kind, start + a, start + b) for kind, a, b in inside]
    return sorted([*found, *more], key=lambda finding: finding.start)
