"""What to do about an entry in quarantine."""

from __future__ import annotations

from trainers.importing.quarantined import Entry

RERUN = "then run `nightschool quarantine rerun`"
# By how the reason begins, or a word in it; the first that fits.
_ADVICE = (
    ("longer than", f"raise ingest.max_line_bytes if such rows are meant to be there, {RERUN}"),
    ("the line is longer", f"raise ingest.max_line_bytes if such rows are meant, {RERUN}"),
    ("the object has", f"raise storage.max_object_bytes if such objects are meant, {RERUN}"),
    ("a Parquet file above", f"raise storage.max_object_bytes, or write smaller files; {RERUN}"),
    ("unfolds to more", "a packed file that unfolds without end is not read: see who wrote it"),
    ("a zip archive", "unpack it, and import what was in it"),
    ("cut off", "the file was not written to its end: let its writer finish, and import it again"),
    ("ends inside", "the file was not written to its end: let its writer finish, and import it"),
    ("damaged", "the file is damaged: have it exported again, and import that"),
    (
        "in the future",
        "once that time has come: `nightschool quarantine rerun`; else mend the "
        "clock of the machine that wrote it, and export again",
    ),
    ("no known format", "name the format: `nightschool import FORMAT LOCATION`"),
    ("recorded without", "switch on the recording of content where the spans are made"),
    ("without what was said", "the logger was told to leave out messages: switch that off"),
    ("without its messages", "fetch them by the API and put them beside it as `messages`"),
    ("not valid JSON", "mend the row in its file, and import that again: nothing counts twice"),
)
_ELSE = "if the row is right, and a newer release may read it, `nightschool quarantine rerun` then"


def advice(entry: Entry) -> str:
    return next((said for mark, said in _ADVICE if mark in entry.reason), _ELSE)
