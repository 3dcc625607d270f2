"""The second look for personal data, at logs that may come from other writers than our gateway.

Our own gateway has redacted already and this finds nothing more. What it does find is replaced the
same way, with placeholders that are consistent within a session (as far as the object shows it).
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from infra.anonymize.anonymizer import Anonymizer, RecordDropped, Scope
from infra.calls.record import CallRecord, LogRecord
from infra.settings.serving import Anonymizer as AnonymizerSettings

MAX_SCOPES = 1024


class PrivacyCheck:
    """One per object, so that doing an object again gives the same placeholders.

    Args:
        anonymizer: None: the check is switched off; counts still come from the records.
    """

    def __init__(self, anonymizer: Anonymizer | None) -> None:
        self._anonymizer = anonymizer
        self._scopes: OrderedDict[tuple[str, str], Scope] = OrderedDict()
        self.counts: Counter[str] = Counter()
        """All personal data: what the record says was replaced, and what was found here."""
        self.found_here: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        """Records that may not be stored, by the kinds that they held."""

    @classmethod
    def of(cls, settings: AnonymizerSettings) -> PrivacyCheck:
        """The check that ``[anonymizer]`` asks for. Raises what ``Anonymizer`` raises."""
        return cls(Anonymizer(settings, ingest=True) if settings.enabled else None)

    def check(self, record: LogRecord) -> LogRecord | None:
        """The record without personal data; None: by ``[anonymizer] kinds`` it is not stored."""
        before = Counter(record.anonymization.counts)
        checked: LogRecord = record
        if self._anonymizer is not None:
            try:
                if isinstance(record, CallRecord):
                    scope = self._scope(self._anonymizer, (record.tenant, record.session))
                    checked = scope.record(record)
                else:
                    scope = self._scope(self._anonymizer, (record.tenant, f"call:{record.call_id}"))
                    checked = scope.record(record)
            except RecordDropped as dropped:
                self.left_out[", ".join(dropped.kinds)] += 1
                return None
        after = Counter(checked.anonymization.counts)
        self.counts.update(after)
        self.found_here.update(after - before)
        return checked

    def _scope(self, anonymizer: Anonymizer, key: tuple[str, str]) -> Scope:
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = anonymizer.scope()
            if len(self._scopes) > MAX_SCOPES:
                self._scopes.popitem(last=False)
        self._scopes.move_to_end(key)
        return scope
