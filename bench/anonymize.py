"""How much personal data is found, and how fast, beside Presidio's default analyzer. Prints JSON.

The corpus is presidio-evaluator's: its sentence templates filled by its own generator. It is not wholly
new to the recognizers: at first misses of all templates were looked at, then those of odd number alone; so
``held_out`` (the even ones) is the less biased half, not an unseen one.

A value counts as found when findings of any kind cover nine tenths of it; a finding is right when
it touches a labelled value. Times are processor time of one
process, both in this run.

    python bench/anonymize.py [--peers .venv-peers-presidio] [--sentences 3000] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infra.anonymize.anonymizer import Anonymizer
from infra.settings.serving import Anonymizer as Settings

STRUCTURED = (
    *("CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "US_SSN"),
)
NAMES = ("PERSON", "GPE", "ORGANIZATION")
# Theirs that answer to the structured labels.
PEERS = {*STRUCTURED, "UK_NHS", "US_BANK_NUMBER", "US_ITIN", "US_PASSPORT", "US_DRIVER_LICENSE"}
OURS_OF_NAMES = {"PERSON", "PLACE", "ORGANIZATION"}
COVERED = 0.9
SEED = 11

Spans = Sequence[tuple[str, int, int]]


def recall(rows: Sequence[dict[str, Any]], found: Sequence[Spans], labels: Iterable[str]) -> Any:
    total: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    for row, spans in zip(rows, found, strict=True):
        for kind, start, end in row["spans"]:
            if kind in labels:
                inside = sum(max(0, min(e, end) - max(s, start)) for _, s, e in spans)
                total[kind] += 1
                hit[kind] += inside >= COVERED * (end - start)
    by_kind = {kind: [round(hit[kind] / n, 4), n] for kind, n in sorted(total.items())}
    return {"all": round(hit.total() / max(1, total.total()), 4), "by_kind": by_kind}


def precision(rows: Sequence[dict[str, Any]], found: Sequence[Spans]) -> float:
    """Share of the findings that touch a labelled value."""
    right = total = 0
    for row, spans in zip(rows, found, strict=True):
        for _, start, end in spans:
            total += 1
            right += any(s < end and e > start for _, s, e in row["spans"])
    return round(right / max(1, total), 4)


def ours(rows: Sequence[dict[str, Any]], names: bool) -> tuple[list[Spans], float]:
    anonymizer = Anonymizer(Settings(names="everywhere" if names else "off"))
    anonymizer.find("warm up, ann@example.com, call 415-555-2671, John Smith")
    begun = time.process_time()
    found = [[tuple(item) for item in anonymizer.find(row["text"])] for row in rows]
    return found, time.process_time() - begun  # type: ignore[return-value]


def measure(peers: Path, sentences: int) -> dict[str, Any]:
    script = Path(__file__).parent / "support" / "presidio_peer.py"
    done = subprocess.run(
        [peers / "bin" / "python", script, str(sentences), str(SEED)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )
    told = json.loads(done.stdout)
    rows = told["rows"]
    plain, plain_seconds = ours(rows, names=False)
    named, named_seconds = ours(rows, names=True)
    theirs: list[Spans] = [[tuple(span) for span in row["found"]] for row in rows]  # type: ignore[misc]
    result: dict[str, Any] = {
        "sentences": len(rows),
        "records_per_cpu_second": {
            "structured": round(len(rows) / plain_seconds),
            "with_names": round(len(rows) / named_seconds),
            "presidio": round(len(rows) / told["cpu_seconds"]),
        },
        "times_presidio": {
            "structured": round(told["cpu_seconds"] / plain_seconds, 1),
            "with_names": round(told["cpu_seconds"] / named_seconds, 2),
        },
    }
    for name, wanted in (("held_out", {0}), ("seen", {1})):
        chosen = [i for i, row in enumerate(rows) if row["template"] % 2 in wanted]
        part = [rows[i] for i in chosen]
        structured = [plain[i] for i in chosen]
        with_names = [[s for s in named[i] if s[0] in OURS_OF_NAMES] for i in chosen]
        other = [theirs[i] for i in chosen]
        result[name] = {
            "structured_recall": recall(part, structured, STRUCTURED),
            "structured_precision": precision(part, structured),
            "names_recall": recall(part, with_names, NAMES),
            "names_precision": precision(part, with_names),
            "presidio_structured_recall": recall(part, other, STRUCTURED),
            "presidio_structured_precision": precision(
                part, [[s for s in spans if s[0] in PEERS] for spans in other]
            ),
            "presidio_names_recall": recall(part, other, NAMES),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers-presidio"))
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="600 sentences")
    options = parser.parse_args()
    if not (options.peers / "bin" / "python").exists():
        print(f"{options.peers} is not there: make it with bench/make-peers.sh", file=sys.stderr)
        sys.exit(0)
    text = json.dumps(measure(options.peers, 600 if options.quick else options.sentences), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
