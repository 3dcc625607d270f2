"""A backup restored into an empty machine: the same routes, on both databases and across them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
import zstandard
from sqlalchemy import select

from infra.database import backup as copying
from infra.database.backup import BackupError, backup, restore
from infra.database.events import record_event
from infra.database.leases import acquire
from infra.database.open import Database
from infra.database.tables import metadata
from serving.gateway.snapshot_rows import read_snapshot
from serving.registry.keys import create_key
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.contracts.servers import PostgresServer
from tests.serving.registry.world import NOW, add_adapter, add_task


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer
) -> Iterator[Database]:
    """The empty machine."""
    url = f"sqlite:///{tmp_path}/elsewhere/new.db"
    opened = Database(url if request.param == "sqlite" else postgres.new_database())
    yield opened
    opened.close()


@pytest.fixture
def lived_in(each_database: Database) -> Database:
    """A champion that was promoted, one that is in a canary, a key, a lease, and text of all sorts."""
    registry = Registry(each_database)
    for task in ("invoice-fields", "small-talk"):
        add_task(each_database, task)
    champion = add_adapter(registry, "invoice-fields", 1)
    registry.set_route(
        "invoice-fields",
        0,
        None,
        champion=champion.name,
        actor="ann",
        why='"quoted" \u00e9\u2028\n',
    )
    candidate = add_adapter(registry, "invoice-fields", 2)
    registry.open_rollout(
        "invoice-fields", candidate.name, RolloutPolicy(), actor="ann", why="better"
    )
    create_key(each_database, tenant="shop", role="call", label="till")
    acquire(each_database, "night", "holder", 60)
    return each_database


def everything(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as connection:
        return {
            table.name: [
                tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))
            ]
            for table in metadata.sorted_tables
        }


def test_the_restored_machine_answers_by_the_same_routes(
    lived_in: Database, elsewhere: Database, tmp_path: Path
) -> None:
    file = tmp_path / "copy.jsonl.zst"
    counts = backup(lived_in, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert restore(elsewhere, file) == counts
    assert counts["routes"] and counts["rollouts"] and counts["api_keys"] and counts["leases"]
    assert everything(elsewhere) == everything(lived_in)
    assert read_snapshot(elsewhere, NOW) == read_snapshot(lived_in, NOW)
    # Life goes on: the next event gets an id of its own, the next change its version.
    with elsewhere.begin() as connection:
        record_event(connection, actor="bob", what="a test", subject="x", why="after the restore")
    registry = Registry(elsewhere)
    champion = registry.route("invoice-fields").champion
    third = add_adapter(registry, "small-talk", 3)
    registry.set_route("small-talk", 0, None, champion=third.name, actor="bob", why="also here")
    assert [route.champion for route in registry.routes()] == [champion, third.name]
    elsewhere.check()


def test_a_database_with_rows_is_left_alone(
    lived_in: Database, elsewhere: Database, tmp_path: Path
) -> None:
    file = tmp_path / "copy.jsonl.zst"
    backup(lived_in, file)
    elsewhere.upgrade()
    add_task(elsewhere, "already-here")
    before = everything(elsewhere)
    with pytest.raises(BackupError, match="not empty"):
        restore(elsewhere, file)
    assert everything(elsewhere) == before
    with pytest.raises(BackupError, match="never overwritten"):
        backup(lived_in, file)


def test_damage_is_told_and_restores_nothing(
    lived_in: Database, elsewhere: Database, tmp_path: Path
) -> None:
    file = tmp_path / "copy.jsonl.zst"
    backup(lived_in, file)
    whole = zstandard.decompress(file.read_bytes(), max_output_size=1 << 24)
    lines = whole.splitlines(keepends=True)
    header = json.loads(lines[0])
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    other = json.dumps({**header, "revision": "0000"}).encode() + b"\n"
    stranger = json.dumps({"table": "nobody", "row": {}}).encode() + b"\n"
    damaged = {
        "cut short": zstandard.compress(b"".join(lines[:-1])),
        "cut short:": zstandard.compress(b"".join([*lines[:-2], lines[-1]])),
        "unknown table": zstandard.compress(b"".join([lines[0], stranger, *lines[1:]])),
        "0000": zstandard.compress(b"".join([other, *lines[1:]])),
        "damaged": file.read_bytes()[:-40],
        # One bit: found by a check sum, or before by what the bit made of the rows.
        ".": bytes(flipped),
        "no backup": zstandard.compress(b'{"hello": 1}\n'),
        "is damaged, or": b"PK\x03\x04 something else",
    }
    for said, content in damaged.items():
        broken = tmp_path / "broken.jsonl.zst"
        broken.write_bytes(content)
        with pytest.raises(BackupError, match=said.rstrip(":")):
            restore(elsewhere, broken)
        assert not any(everything_if_made(elsewhere).values())
    with pytest.raises(BackupError, match="cannot be read"):
        restore(elsewhere, tmp_path / "nothing-there")
    restore(elsewhere, file)
    assert everything(elsewhere) == everything(lived_in)


def everything_if_made(database: Database) -> dict[str, list[tuple[object, ...]]]:
    try:
        database.check()
    except Exception:  # noqa: BLE001 - no tables yet: nothing in them
        return {}
    return everything(database)


def test_a_backup_is_one_view_while_others_write(
    lived_in: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, written = Event(), Event()
    plain = copying._plain

    def meanwhile(value: object) -> object:
        if not started.is_set():
            started.set()
            assert written.wait(30)
        return plain(value)

    def write() -> None:
        assert started.wait(30)
        with lived_in.begin() as connection:
            record_event(connection, actor="bob", what="late", subject="late", why="meanwhile")
        written.set()

    monkeypatch.setattr(copying, "_plain", meanwhile)
    before = {name: len(rows) for name, rows in everything(lived_in).items()}
    writer = Thread(target=write)
    writer.start()
    counts = backup(lived_in, tmp_path / "copy.jsonl.zst")
    writer.join(30)
    assert written.is_set()
    assert counts == before
