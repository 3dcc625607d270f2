"""A file through reader and anonymizer, a row at a time, for a person who wants to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.explain import Replacement, explain
from infra.anonymize.policy import RecordDropped
from infra.calls.codec import Problem, encode_line
from infra.settings.model import Settings
from trainers.ingest.privacy import PrivacyCheck
from trainers.readers.reader import Skipped
from trainers.readers.reading import read_source

TEXT = "text"
"""Not a format of calls: any text, line by line."""


@dataclass(frozen=True)
class AnonymizedRow:
    position: str
    line: bytes = b""
    """The record without personal data, with its newline."""
    counts: Mapping[str, int] = field(default_factory=dict)
    replacements: tuple[Replacement, ...] = ()
    problem: str = ""
    """Why it could not be read."""
    left_out: str = ""
    """The kinds for which it may not be stored."""


def anonymized(settings: Settings, file: Path, format_name: str) -> Iterator[AnonymizedRow]:
    """Each call of a file as it would be stored; rows that are no calls are left out.

    Of ``text`` each line is rewritten by itself, as parts of one session.
    """
    if format_name == TEXT:
        yield from _texts(settings, file)
        return
    privacy = PrivacyCheck.of(settings.anonymizer)
    with file.open("rb") as stream:
        for read in read_source(
            stream,
            format_name,
            max_row_bytes=settings.ingest.max_line_bytes,
            max_parquet_bytes=settings.storage.max_object_bytes,
        ):
            if isinstance(read.item, Problem):
                where = f" at {read.item.position}" if read.item.position else ""
                yield AnonymizedRow(read.position, problem=f"{read.item.reason}{where}")
                continue
            if isinstance(read.item, Skipped):
                continue
            before = Counter(read.item.anonymization.counts)
            known = Counter(privacy.left_out)
            checked = privacy.check(read.item)
            if checked is None:
                yield AnonymizedRow(read.position, left_out=next(iter(privacy.left_out - known)))
                continue
            old, new = read.item.model_dump(mode="json"), checked.model_dump(mode="json")
            for told in (old, new):
                told.pop("anonymization")
            yield AnonymizedRow(
                read.position,
                encode_line(checked),
                Counter(checked.anonymization.counts) - before,
                tuple(explain(old, new)),
            )


def _texts(settings: Settings, file: Path) -> Iterator[AnonymizedRow]:
    anonymizer = Anonymizer(settings.anonymizer, ingest=True)
    scope, limit, number = anonymizer.scope(), settings.ingest.max_line_bytes, 0
    with file.open("rb") as stream:
        while line := stream.readline(limit + 1):
            number += 1
            where = f"line {number}"
            if len(line) > limit and not line.endswith(b"\n"):
                while (rest := stream.readline(limit)) and not rest.endswith(b"\n"):
                    pass
                yield AnonymizedRow(where, problem=f"the line is longer than {limit} bytes")
                continue
            before, text = Counter(scope.counts), line.decode(errors="replace")
            changed = scope.text(text)
            found = Counter(scope.counts) - before
            try:
                anonymizer.rules.may_store(found)
            except RecordDropped as dropped:
                yield AnonymizedRow(where, left_out=", ".join(dropped.kinds))
                continue
            yield AnonymizedRow(
                where,
                changed.encode("utf-8", "replace"),
                found,
                tuple(explain(text, changed, "text")),
            )
