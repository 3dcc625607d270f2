"""Exports, and what became of them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from infra.calls.codec import LOG_PREFIX, parse_line, read_lines
from infra.calls.record import CallRecord
from infra.settings.model import Settings
from tests.trainers.readers import run_of_agent as agent
from trainers.importing.importing import ImportReport, import_logs
from trainers.readers.formats import reader_named
from trainers.readers.reader import Place

SETTINGS = Settings()


def put(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def run(world: Any, location: Path | str, name: str = "auto", **options: Any) -> ImportReport:
    store, database = world
    settings = options.pop("settings", SETTINGS)
    return import_logs(store, database, settings, name, str(location), **options)


def logged(world: Any) -> list[CallRecord]:
    store, _ = world
    found = []
    for item in store.list(LOG_PREFIX):
        with store.open(item.key) as stream:
            found += [parse_line(line.content) for line in read_lines(stream)]  # type: ignore[arg-type]
    return found  # type: ignore[return-value]


def keys(world: Any) -> dict[str, str]:
    store, _ = world
    return {item.key: item.etag for item in store.list() if not item.key.startswith("imports/")}


def flywheel_row(number: int, text: str = "hello") -> dict[str, Any]:
    said = [{"role": "user", "content": f"{text} {number}"}]
    moment = agent.TIME + timedelta(seconds=number)
    answer = agent.completion(number, agent.SAID, moment)
    return {
        "timestamp": int(moment.timestamp()),
        "workload_id": "w",
        "client_id": "c",
        "request": {"model": "m", "messages": said},
        "response": answer,
    }


def ids_of(rows: list[Any]) -> list[str]:
    return [r.id for row in rows for r in reader_named("flywheel").read(row, Place("line 1"))]  # type: ignore[union-attr]
