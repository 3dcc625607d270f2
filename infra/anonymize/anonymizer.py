"""Replace personal data by consistent, typed placeholders, and put it back where it is allowed.

>>> scope = Anonymizer(settings.anonymizer).scope()      # one per session
>>> scope.text("write to ann@example.com")
'write to <EMAIL_1>'
>>> scope.restore({"to": "<EMAIL_1>"})
{'to': 'ann@example.com'}

Within a scope the same value gets the same placeholder, in the prompt, in tool arguments and in the
answer, so that copying a value stays learnable. Across scopes nothing links, unless the policy is
``hash``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from threading import RLock
from typing import Any, NamedTuple, TypeVar, cast

from infra.anonymize.credentials import is_secret_name
from infra.anonymize.finding import Finding, Recognizer
from infra.anonymize.memory import Generations, key_of, packed
from infra.anonymize.names import names
from infra.anonymize.placeholders import NOTHING, PLACEHOLDER, find_placeholders, map_strings
from infra.anonymize.policy import Policy, RecordDropped
from infra.anonymize.quiet import quiet
from infra.anonymize.recognizers import Structured, find
from infra.anonymize.restoring import restored
from infra.anonymize.rewriting import Counts, Rewriting, add, constant_first, is_count
from infra.calls.record import Anonymization, CallRecord, FeedbackRecord, Record
from infra.settings.serving import Anonymizer as AnonymizerSettings

MAX_VALUES = 50_000
_KNOWN_TEXTS = 4096
_KNOWN_TEXT_CHARACTERS = 8192
_KNOWN_CLEAN = 50_000
_KNOWN_REWRITTEN = 2000
_KNOWN_REWRITTEN_BYTES = 16 << 10
_OPEN_FIELDS = ("request", "response", "task_tag")

Log = TypeVar("Log", CallRecord, FeedbackRecord)
Part = TypeVar("Part", bound=Record)


class Anonymizer:
    """The recognizers and the policy of ``[anonymizer]``. Thread-safe.

    Args:
        settings: policy, kinds to keep, region for phone numbers.
        recognizers: more of them, trusted less than the structured ones.
        ingest: whether it looks at logs, where ``[anonymizer] names`` may be on though the gateway does
            without.

    Raises:
        ValueError: a kind is to be hashed and there is no key.
        NoNamesModel: names are on and their model is not installed.
    """

    def __init__(
        self,
        settings: AnonymizerSettings,
        recognizers: Sequence[Recognizer] = (),
        *,
        ingest: bool = False,
    ) -> None:
        self.rules = Policy(settings)
        self.settings = settings
        self._structured = Structured(settings.default_region)
        named = settings.names == "everywhere" or (ingest and settings.names == "ingest")
        self._more = (*recognizers, *((names(),) if named and settings.enabled else ()))
        self._texts: Generations[tuple[Finding, ...]] = Generations(_KNOWN_TEXTS)
        # Parts of requests in which there is nothing to replace, in whatever session.
        self._clean: Generations[bool] = Generations(_KNOWN_CLEAN)
        # Those that were rewritten, by the scope's number.
        self._rewritten: Generations[tuple[Any, Counts]] = Generations(_KNOWN_REWRITTEN)
        self._numbers = count()

    @property
    def policy(self) -> str:
        """What a record's ``anonymization.policy`` says."""
        return self.rules.name

    def scope(self) -> Scope:
        """A new mapping of values to placeholders: one per session."""
        return Scope(self)

    def find(self, text: str) -> tuple[Finding, ...]:
        """Personal data in a text, kept kinds left out; existing placeholders are none."""
        if len(text) > _KNOWN_TEXT_CHARACTERS:
            return self._find(text)
        known = self._texts.get(text)
        if known is None:
            known = self._find(text)
            self._texts.put(text, known)
        return known

    def quiet(self, data: bytes) -> bool:
        """Whether nothing can be found, cut off or left out in a JSON value of these bytes."""
        short = len(data) <= self.settings.max_text_characters
        return short and not self._more and quiet(data)

    def personal(self, text: str) -> bool:
        """Whether anything would be found in a text."""
        return bool(self.find(text))

    def _find(self, text: str) -> tuple[Finding, ...]:
        recognizers = (*self._structured.worth_asking(text), *self._more)
        if "<" in text:
            recognizers = (find_placeholders, *recognizers)
        if not recognizers:
            return ()
        return tuple(
            finding
            for finding in find(text, recognizers)
            if finding.kind not in self.rules.kept and finding.kind != NOTHING
        )


class Redacted(NamedTuple):
    """A request without personal data, and how often what kind of it was replaced."""

    request: dict[str, Any]
    counts: Counts


class Scope:
    """The placeholders of one session. Thread-safe; made by ``Anonymizer.scope()``."""

    def __init__(self, anonymizer: Anonymizer) -> None:
        self._anonymizer = anonymizer
        self._number = next(anonymizer._numbers)
        self._lock = RLock()
        self._placeholders: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._last: Counts = {}
        self._counts: Counts = {}

    @property
    def counts(self) -> dict[str, int]:
        """Occurrences replaced so far, by kind."""
        return dict(self._counts)

    def text(self, text: str) -> str:
        """The text (prose, or JSON as text, which stays JSON) with placeholders."""
        changed: str = self.value(text)
        return changed

    def value(self, value: Any) -> Any:
        """Any JSON value with every string in it rewritten; keys and JSON inside strings too."""
        return self._run(value)[0]

    def request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """An OpenAI request. Its constant parts get the same numbers in every session."""
        return self.redacted(request).request

    def redacted(self, request: Mapping[str, Any]) -> Redacted:
        """``request``, with what was found: what ``fields`` takes, so that it need not look again."""
        return Redacted(*self._run(dict(request)))

    @property
    def busy(self) -> bool:
        """Whether another thread works in this scope just now: whoever may not wait asks first."""
        free = self._lock.acquire(blocking=False)
        if free:
            self._lock.release()
        return not free

    def redacted_now(self, request: Mapping[str, Any]) -> Redacted | None:
        """The same, or None while another thread works in this scope: for who may not wait."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self.redacted(request)
        finally:
            self._lock.release()

    def record(self, record: Log) -> Log:
        """A log record without personal data; says by which policy and how much was found.

        A session id that is itself personal (a mail address) becomes a keyed hash, so that
        sessions stay apart. Anonymizing what already is changes nothing but adds to the counts.

        Raises RecordDropped.
        """
        if not self._anonymizer.settings.enabled:
            return record
        counts: Counts = {}
        changes: dict[str, Any] = {}
        if isinstance(record, CallRecord):
            changed = self._open(record, _OPEN_FIELDS, counts)
            changes["session"] = self._name(record.session, "s", counts)
            changes["usage"] = self._open(record.usage, (), counts)
            changes["answered_by"] = self._open(record.answered_by, ("escalation",), counts)
            changes["checks"] = self._open(record.checks, ("reason",), counts)
            changes["other_answers"] = [
                self._open(other, ("message", "error"), counts).model_copy(
                    update={"checks": self._open(other.checks, ("reason",), counts)}
                )
                for other in record.other_answers
            ]
        else:
            changed = self._open(record, ("correction", "label"), counts)
        changes["tenant"] = self._name(record.tenant, "t", counts)
        self._anonymizer.rules.may_store(counts)
        add(counts, record.anonymization.counts)
        changes["anonymization"] = Anonymization(
            policy=self._anonymizer.policy, counts=dict(sorted(counts.items()))
        )
        return changed.model_copy(update=changes)

    def fields(self, fields: Mapping[str, Any], known: Redacted | None = None) -> dict[str, Any]:
        """What ``record`` does, for a call record in its stored form: JSON values by field name.

        Args:
            known: what this scope made of the record's request, which is in ``fields`` already.

        Raises RecordDropped.
        """
        changed = dict(fields)
        if not self._anonymizer.settings.enabled:
            return changed
        counts = dict(known.counts) if known is not None else {}
        for name in _OPEN_FIELDS:
            if fields[name] is not None and (name != "request" or known is None):
                changed[name], found = self._run(fields[name])
                add(counts, found)
        changed["session"] = self._name(fields["session"], "s", counts)
        changed["tenant"] = self._name(fields["tenant"], "t", counts)
        for part, name in (("checks", "reason"), ("answered_by", "escalation")):
            changed[part] = self._text_in(fields[part], name, counts)
        others = []
        for other in fields["other_answers"]:
            said, found = self._run({"message": other["message"], "error": other["error"]})
            add(counts, found)
            said["checks"] = self._text_in(other["checks"], "reason", counts)
            others.append({**other, **said})
        changed["other_answers"] = others
        self._anonymizer.rules.may_store(counts)
        add(counts, fields["anonymization"]["counts"])
        changed["anonymization"] = {
            "policy": self._anonymizer.policy,
            "counts": dict(sorted(counts.items())),
        }
        return changed

    def restore(self, value: Any) -> Any:
        """Put the values back for the placeholders of this scope; unknown ones stay."""
        with self._lock:
            values = dict(self._values)
        return restored(value, values) if values else value

    def _run(self, value: Any) -> tuple[Any, Counts]:
        if not self._anonymizer.settings.enabled:
            return value, {}
        with self._lock:
            run = Rewriting(self._anonymizer.settings, self._anonymizer.find, self._placeholder)
            if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
                changed = self._conversation(value, run)
            else:
                told = value
                if isinstance(value, dict):
                    told = {key: item for key, item in value.items() if not is_count(key, item)}
                data = packed(told)
                if data is None or b"<" in data:
                    self._reserve(value)
                loud = data is None or not self._anonymizer.quiet(data)
                changed = run.value(value) if loud else value
            add(self._counts, run.counts)
        return changed, run.counts

    def _conversation(self, value: Mapping[str, Any], run: Rewriting) -> dict[str, Any]:
        """A request, part by part: tools and earlier messages are mostly known already.

        Rewriting a part again gives the same again, because a value keeps its placeholder; so a known
        part is taken from memory.
        """
        parts = [
            (key, item, packed(item))
            for key in constant_first(value)
            for item in (value[key] if key == "messages" else (value[key],))
        ]
        marked = any("<" in str(key) for key in value)
        for _, _, data in parts:
            marked = marked or data is None or b"<" in data
        if marked:
            # Before anything is numbered: a later part may hold what an earlier one would be given.
            self._reserve(value)
        done: dict[Any, Any] = {"messages": []}
        for key, item, data in parts:
            if key == "messages":
                done[key].append(self._part("messages", item, 2, data, run))
            else:
                done[key] = self._part(str(key), item, 1, data, run)
        return {run.key(key): done[key] for key in value}

    def _part(self, name: str, item: Any, depth: int, data: bytes | None, run: Rewriting) -> Any:
        if data is None:
            return run.value(item, name, depth)
        anonymizer, known = self._anonymizer, (name, key_of(data))
        if anonymizer._clean.get(known):
            return item
        mine = (self._number, known)
        before = anonymizer._rewritten.get(mine)
        if before is not None:
            add(run.counts, before[1])
            return before[0]
        found: Counts = {}
        if is_secret_name(name) or not anonymizer.quiet(data):
            counts, run.counts = run.counts, found
            changed = run.value(item, name, depth)
            run.counts = counts
            add(counts, found)
        if not found:
            # Nothing replaced: the part is as it was, here and in every other session.
            anonymizer._clean.put(known, True)
            return item
        if len(data) <= _KNOWN_REWRITTEN_BYTES:
            anonymizer._rewritten.put(mine, (changed, found))
        return changed

    def _placeholder(self, kind: str, value: str) -> str:
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        policy = self._anonymizer.settings.policy_of(kind)
        if policy == "drop" or len(self._placeholders) >= MAX_VALUES:
            return f"<{kind}>"
        if policy == "hash":
            made = f"<{kind}_h{self._anonymizer.rules.keyed_hash(value)}>"
        else:
            number = self._last[kind] = self._last.get(kind, 0) + 1
            made = f"<{kind}_{number}>"
        self._placeholders[kind, value] = made
        self._values[made] = value
        return made

    def _reserve(self, value: Any) -> None:
        """Numbers that the input already uses are never given to another value."""

        def note(text: str) -> str:
            if "<" in text:
                for match in PLACEHOLDER.finditer(text):
                    if match.group(2).isdigit() and match.group() not in self._values:
                        kind = match.group(1)
                        self._last[kind] = max(self._last.get(kind, 0), int(match.group(2)))
            return text

        map_strings(value, note, note)

    def _open(self, part: Part, names: Sequence[str], counts: Counts) -> Part:
        """A record, or a part of one, with its fields of these names rewritten, and with them whatever
        this release does not know, the names of those fields included."""
        changed: dict[str, Any] = {}
        for name in names:
            if value := getattr(part, name):
                changed[name], found = self._run(value)
                add(counts, found)
        if not (extra := part.model_extra):
            return part.model_copy(update=changed) if changed else part
        more, found = self._run(extra)
        add(counts, found)
        declared = {name: getattr(part, name) for name in type(part).model_fields}
        values = {**more, **declared, **changed}
        return cast("Part", type(part).model_construct(part.model_fields_set, **values))

    def _text_in(self, part: Mapping[str, Any], name: str, counts: Counts) -> Mapping[str, Any]:
        if not part[name]:
            return part
        text, found = self._run(part[name])
        add(counts, found)
        return {**part, name: text} if found else part

    def _name(self, name: str, mark: str, counts: Counts) -> str:
        found = self._anonymizer.find(name)
        if not found:
            return name
        for finding in found:
            add(counts, {finding.kind: 1})
        return f"{mark}-{self._anonymizer.rules.keyed_hash(name)}"


__all__ = ["Anonymizer", "Finding", "RecordDropped", "Scope"]
