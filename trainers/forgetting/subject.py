"""Which records are a subject's. Pure, but for the calls that it learns to know.

The log names a session by the caller's id or by a hash of it, and holds texts anonymized; so what a
person gives goes through the same functions before it is compared.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.session_names import SessionNames
from infra.calls.record import CallRecord, LogRecord
from infra.settings.serving import Anonymizer as AnonymizerSettings
from trainers.data_sets.labels import Example

Kind = Literal["session", "tenant", "match"]
MIN_MATCH_CHARACTERS = 4
MAX_DEPTH = 64


@dataclass
class Subject:
    """One session (of any tenant), one tenant, or whatever holds a text (in any case of letters)."""

    kind: Kind
    value: str
    names: SessionNames
    needles: tuple[str, ...] = ()
    """Texts to look for, case-folded."""
    calls: set[int] = field(default_factory=set)
    """64 bits for each call found: feedback on it names nothing else."""

    @classmethod
    def of(cls, kind: Kind, value: str, settings: AnonymizerSettings) -> Subject:
        """Raises ValueError: the value is empty, or a text so short that it would match anything."""
        if not value.strip():
            raise ValueError(f"the {kind} to forget is empty")
        if kind == "match" and len(value.strip()) < MIN_MATCH_CHARACTERS:
            raise ValueError(f"a text to forget has at least {MIN_MATCH_CHARACTERS} characters")
        key = settings.hash_key
        anonymizer = Anonymizer(settings) if settings.enabled else None
        names = SessionNames(
            personal=lambda text: anonymizer is not None and bool(anonymizer.find(text)),
            hash_key=key.get_secret_value().encode() if key else b"",
        )
        needles = {value.casefold()} if kind == "match" else set()
        found = anonymizer.find(value) if kind == "match" and anonymizer is not None else ()
        if anonymizer and found and all(settings.policy_of(f.kind) == "hash" for f in found):
            # Only a hash says whose it is; <EMAIL_1> is another person's in every session.
            needles.add(anonymizer.scope().text(value).casefold())
        return cls(kind, value, names, tuple(sorted(needles)))

    def goes(self, line: LogRecord | bytes) -> bool:
        """Whether a record, or a line that is none, is the subject's."""
        return self.has_line(line) if isinstance(line, bytes) else self.has(line)

    def has(self, record: LogRecord) -> bool:
        """Whether the record is the subject's: by itself, or as feedback on a call that is known."""
        if self.kind == "tenant":
            return record.tenant == self.value
        if isinstance(record, CallRecord):
            if identity(record.tenant, record.id) in self.calls:
                return True
        elif identity(record.tenant, record.call_id) in self.calls:
            return True
        if self.kind == "match":
            return self.said(record.model_dump(mode="python"))
        return isinstance(record, CallRecord) and self._session(record.tenant, record.session)

    def know(self, record: LogRecord) -> None:
        """Remember a call of the subject's, for the feedback on it. A tenant's feedback says whose it is."""
        if isinstance(record, CallRecord) and self.kind != "tenant":
            self.calls.add(identity(record.tenant, record.id))

    def has_line(self, line: bytes) -> bool:
        """Whether a line that is no record names the subject anywhere in its bytes."""
        text = line.decode("utf-8", "replace").casefold()
        return any(needle in text for needle in self.needles or (self.value.casefold(),))

    def has_example(self, example: Example) -> bool:
        """Whether a data set's example is the subject's. Its session reads ``tenant/session``."""
        parts = example.session.split("/")
        owners = [("/".join(parts[:i]), "/".join(parts[i:])) for i in range(1, len(parts))]
        if self.kind == "tenant":
            return any(tenant == self.value for tenant, _ in owners)
        if any(identity(tenant, example.call_id) in self.calls for tenant, _ in owners):
            return True
        if self.kind == "match":
            return self.said([example.session, example.request, example.answer])
        return any(self._session(tenant, session) for tenant, session in owners)

    def fingerprint(self) -> dict[str, str]:
        """What an event may say of the value: a keyed digest, or one with a salt of its own."""
        key = self.names.hash_key
        salt = "" if key else secrets.token_hex(16)
        made = hmac.new(key or salt.encode(), self.value.encode("utf-8", "replace"), hashlib.sha256)
        return {"digest": made.hexdigest()[:32], **({"salt": salt} if salt else {})}

    def _session(self, tenant: str, session: str) -> bool:
        return session in _known_as(self.names, self.value, tenant)

    def said(self, value: Any) -> bool:
        """Whether any text within holds a needle, also within JSON that is kept as text."""
        waiting: list[tuple[Any, int]] = [(value, 0)]
        while waiting:
            item, depth = waiting.pop()
            if isinstance(item, str):
                folded = item.casefold()
                if any(needle in folded for needle in self.needles):
                    return True
                inner = _json(item) if depth < MAX_DEPTH else None
                if inner is not None:
                    waiting.append((inner, depth + 1))
            elif isinstance(item, Mapping):
                waiting += [(part, depth) for pair in item.items() for part in pair]
            elif isinstance(item, list | tuple):
                waiting += [(part, depth) for part in item]
        return False


def identity(tenant: str, call_id: str) -> int:
    """64 bits that stand for a call of a tenant."""
    said = f"{len(tenant)}:{tenant}{call_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")


def _json(text: str) -> Any:
    """What a text with escapes in it says, when it is JSON."""
    if "\\" not in text or text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@lru_cache(maxsize=1024)
def _known_as(names: SessionNames, value: str, tenant: str) -> frozenset[str]:
    return names.known_as(value, tenant)
