"""Every reader by the name of its format, and telling formats by their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers.readers.flywheel import Flywheel
from trainers.readers.genai_spans import GenAiSpans
from trainers.readers.langfuse_export import LangfuseExport
from trainers.readers.langsmith_export import LangsmithExport
from trainers.readers.litellm_payload import LitellmPayload
from trainers.readers.openai_lines import OpenAiLines
from trainers.readers.own_records import OwnRecords
from trainers.readers.reader import Reader

AUTO = "auto"
OWN_LOG = "own log"
"""Not offered to importers: lines of our own log, taken for what they say of themselves."""
# In the order in which a row is asked about: the more particular marks first.
READERS: tuple[Reader, ...] = (
    GenAiSpans(),
    LitellmPayload(),
    LangsmithExport(),
    LangfuseExport(),
    OwnRecords(),
    Flywheel(),
    OpenAiLines(),
)
FORMATS = tuple(sorted(reader.name for reader in READERS))
_OWN_LOG = OwnRecords(OWN_LOG, trusted=True)


def reader_named(name: str) -> Reader:
    """Raises ValueError, naming the formats there are."""
    for reader in (*READERS, _OWN_LOG):
        if reader.name == name:
            return reader
    raise ValueError(f"no format {name!r}: use {', '.join(FORMATS)} or {AUTO}")


def reader_of(value: Any) -> Reader | None:
    """The reader that knows a row, or None."""
    if not isinstance(value, Mapping):
        return None
    return next((reader for reader in READERS if reader.recognizes(value)), None)
