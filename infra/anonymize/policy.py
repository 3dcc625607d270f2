"""What ``[anonymizer]`` says of each kind: replaced, hashed, dropped, kept, or not stored at all."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from infra.settings.serving import Anonymizer as AnonymizerSettings
from infra.settings.sources import SettingsError

POLICY_VERSION = 1
DROP_RECORD = "drop_record"


class RecordDropped(Exception):
    """By ``[anonymizer] kinds`` a record with such data is not stored.

    Attributes:
        kinds: those that the policy is for.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.kinds = tuple(sorted(kinds))
        super().__init__(f"a record with {', '.join(self.kinds)} is not stored")


class Policy:
    """Raises SettingsError: a kind is to be hashed and there is no key."""

    def __init__(self, settings: AnonymizerSettings) -> None:
        hashed = settings.policy == "hash" or "hash" in settings.kinds.values()
        if settings.enabled and hashed and settings.hash_key is None:
            raise SettingsError(
                "by [anonymizer] something is to be hashed, and hash_key is not set: "
                "set NIGHTSCHOOL_ANONYMIZER__HASH_KEY, or choose the policy replace"
            )
        key = settings.hash_key
        self._key = key.get_secret_value().encode() if key else b"nightschool"
        self._settings = settings
        chosen = settings.kinds.items()
        self.kept = frozenset([*settings.keep_kinds, *(k for k, p in chosen if p == "keep")])
        self.drops = "drop" in {settings.policy, *settings.kinds.values()}
        """Whether some values are replaced by what nobody can put back."""
        self._unwanted = frozenset(k for k, p in chosen if p == DROP_RECORD)
        parts = [f"{settings.policy}/{POLICY_VERSION}", *(f"{k}={p}" for k, p in sorted(chosen))]
        self.name = ";".join(parts) if settings.enabled else "none"
        """What a record's ``anonymization.policy`` says, e.g. ``replace/1`` or ``replace/1;EMAIL=hash``."""

    def may_store(self, found: Mapping[str, int]) -> None:
        """Raises RecordDropped when ``found`` has a kind that no stored record may hold."""
        if self._unwanted and (kinds := self._unwanted & found.keys()):
            raise RecordDropped(kinds)

    def restorable(self, found: Mapping[str, int]) -> bool:
        """Whether what stands in the place of these kinds tells which value it was."""
        return all(self._settings.policy_of(kind) != "drop" for kind in found)

    def keyed_hash(self, value: str) -> str:
        """16 hex characters of an HMAC-SHA-256 under the configured key."""
        data = value.encode("utf-8", "replace")
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()[:16]
