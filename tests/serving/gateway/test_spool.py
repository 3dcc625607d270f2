"""The spool: what was appended is shipped once, whatever dies in between."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.calls.codec import stored
from infra.calls.record import AnsweredBy, CallRecord, OtherAnswer, utc_now
from infra.objects.directory import DirectoryStore
from infra.objects.store import ObjectInfo, ObjectStoreError
from serving.gateway import spool_files
from serving.gateway.pressing import AT_ONCE, MAX_FAILED
from serving.gateway.shipper import Shipper, ship_file
from serving.gateway.spool import Spool, SpoolError
from serving.gateway.spool_files import object_key, ready_files
from tests.serving.gateway.world import calls, read_log

START = utc_now()


def record(name: str, audited: bool = False) -> CallRecord:
    other = [OtherAnswer(model="t", purpose="audit")] if audited else []
    return CallRecord(
        id=name,
        time=START,
        session="s",
        request={"messages": [{"role": "user", "content": f"text of {name} ü"}]},
        response={},
        answered_by=AnsweredBy(model="m"),
        other_answers=other,
    )


def crash(spool: Spool) -> None:
    """What kill -9 leaves: the files as they are, and no lock."""
    spool._guard.release()
    if spool._open is not None:
        spool._open.close()


def ship_all(spool: Spool, store: DirectoryStore) -> None:
    shipper = Shipper(spool, lambda: store, ship_seconds=1, ship_bytes=1 << 20)
    assert shipper.run_once(last=True)


def test_reading_what_is_to_be_shipped_lets_the_event_loop_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("serving.gateway.pressing.time.sleep", pauses.append)
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    for number in range(3 * AT_ONCE + 1):
        spool.append(stored(record(f"r{number}")))
    ship_all(spool, store)
    assert len(pauses) == 3 and 0 < min(pauses) == max(pauses) < 0.01
    assert len(read_log(store)) == 3 * AT_ONCE + 1


def test_a_long_file_is_pressed_by_a_child_that_may_die_and_holds_the_lock(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    presser = spool._presser
    presser._short_bytes = 0
    shipper = Shipper(spool, lambda: store, ship_seconds=1, ship_bytes=1 << 20)
    spool.append(stored(record("a")), provisional=True)
    spool.append(stored(record("b")))
    assert shipper.run_once()
    assert set(calls(store)) == {"b"}, "the child knows what was carried on"
    child = presser.pid
    assert child is not None and os.getpriority(os.PRIO_PROCESS, child) > 0
    os.kill(child, signal.SIGKILL)
    spool.append(stored(record("a", audited=True)))
    assert shipper.run_once()
    assert calls(store) == {"a": record("a", audited=True), "b": record("b")}
    spool.append(stored(record("c")))
    assert shipper.run_once() and presser.pid not in (None, child)
    crash(spool)
    assert Spool(tmp_path / "spool").writer != spool.writer, "the child may still be writing"
    presser.alone()
    assert Spool(tmp_path / "spool").writer == spool.writer
    assert set(calls(store)) == {"a", "b", "c"}


@pytest.fixture
def high_descriptors() -> Iterator[None]:
    """Whatever is opened from now on has a number beyond 1023, as where many calls are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("no more than a few descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < 1024:
            taken.append(os.dup(taken[0]))
        yield
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_child_presses_for_a_gateway_with_many_open_calls(
    tmp_path: Path, high_descriptors: None
) -> None:
    spool = Spool(tmp_path / "spool")
    spool._presser._short_bytes = 0
    spool.append(stored(record("a")))
    ship_all(spool, DirectoryStore(tmp_path / "objects"))
    assert spool._presser.pid is not None
    spool.close()


def test_a_disk_that_refuses_is_no_fault_of_the_child(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    presser = spool._presser
    presser._short_bytes, presser._failed = 0, MAX_FAILED - 1
    spool.append(stored(record("a")))
    hour = spool_files.entry_of(stored(record("a")), spool_files.FINAL).hour.decode()
    blocked = (spool.folder / spool_files.ready_name(0, hour)).with_suffix(".part")
    blocked.mkdir()
    with pytest.raises(SpoolError, match=blocked.name):
        spool.seal()
    child = presser.pid
    assert child is not None and presser._failed == 0
    for _ in range(MAX_FAILED):
        with pytest.raises(SpoolError, match=blocked.name):
            spool.seal()
    blocked.rmdir()
    ship_all(spool, store)
    assert presser.pid == child and set(calls(store)) == {"a"}
    spool.close()


def test_records_come_out_as_they_went_in(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    for i in range(5):
        spool.append(stored(record(f"r{i}")))
    ship_all(spool, store)
    assert read_log(store) == [record(f"r{i}") for i in range(5)]
    assert ready_files(spool.folder) == []
    (info,) = store.list()
    assert info.key == (
        f"logs/v1/dt={START:%Y-%m-%d}/hh={START:%H}/{spool.writer}-0000000000.jsonl.zst"
    )


def test_a_crash_loses_nothing_and_the_next_gateway_ships_it(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    spool.append(stored(record("a")))
    spool.append(stored(record("b")), provisional=True)
    spool.append(stored(record("c")), provisional=True)
    spool.append(stored(record("c", audited=True)))
    crash(spool)
    with (next(spool.folder.glob("open-*.log"))).open("ab") as file:
        file.write(b'0badcafe F {"type": "call", "id": "torn')
    again = Spool(tmp_path / "spool")
    assert again.writer == spool.writer
    ship_all(again, store)
    assert calls(store) == {
        "a": record("a"),
        "b": record("b"),
        "c": record("c", audited=True),
    }


@pytest.mark.parametrize("torn", [b"deadbeef F 20", b"\x00\xff\n", b"not a frame at all\n"])
def test_a_half_written_line_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    for i in range(3):
        spool.append(stored(record(f"r{i}")))
    crash(spool)
    (left,) = spool.folder.glob("open-*.log")
    with left.open("ab") as file:
        file.write(torn)
    ship_all(Spool(tmp_path / "spool"), store)
    assert read_log(store) == [record(f"r{i}") for i in range(3)]


def test_provisional_records_wait_for_their_final_ones(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    spool.append(stored(record("a")), provisional=True)
    spool.append(stored(record("b")))
    shipper = Shipper(spool, lambda: store, ship_seconds=1, ship_bytes=1 << 20)
    assert shipper.run_once() and shipper.run_once()
    assert set(calls(store)) == {"b"}
    spool.append(stored(record("a", audited=True)))
    assert shipper.run_once()
    assert calls(store)["a"] == record("a", audited=True)


def test_a_crash_between_upload_and_delete_duplicates_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    spool.append(stored(record("a")))
    path = spool.seal()
    assert path is not None
    kept = path.read_bytes()
    ship_file(store, path)
    path.write_bytes(kept)  # as if the delete had never happened
    crash(spool)
    again = Spool(tmp_path / "spool")
    again.append(stored(record("b")))
    ship_all(again, store)
    assert set(calls(store)) == {"a", "b"}


def test_a_key_taken_by_other_content_is_left_and_the_records_still_arrive(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    spool.append(stored(record("a")))
    path = spool.seal()
    assert path is not None
    store.create(object_key(path), b"something else")
    key = object_key(path)
    ship_file(store, path)
    assert store.get(key) == b"something else"
    store.delete(key)
    assert set(calls(store)) == {"a"}


def test_two_gateways_never_share_a_folder_and_orphans_are_shipped(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    first, second = Spool(tmp_path / "spool"), Spool(tmp_path / "spool")
    assert first.writer != second.writer
    first.append(stored(record("a")))
    second.append(stored(record("b")))
    crash(second)
    ship_all(first, store)  # the second will never come back
    assert set(calls(store)) == {"a", "b"}


def test_a_full_disk_refuses_the_record_and_keeps_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "objects")
    spool = Spool(tmp_path / "spool")
    spool.append(stored(record("a")))
    real = os.write

    def full_now(file: int, data: bytes) -> int:
        nonlocal wrote
        if wrote:
            raise OSError(errno.ENOSPC, "No space left on device")
        wrote = True
        return real(file, data[:40])

    wrote = False
    monkeypatch.setattr(spool_files.os, "write", full_now)
    with pytest.raises(SpoolError, match="No space left"):
        spool.append(stored(record("b")))
    monkeypatch.setattr(spool_files.os, "write", real)
    spool.append(stored(record("c")))
    ship_all(spool, store)
    assert set(calls(store)) == {"a", "c"}


def test_a_store_that_is_away_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    away = True

    class Flaky(DirectoryStore):
        def create(self, key: str, data: bytes) -> ObjectInfo:
            if away:
                raise ObjectStoreError("away")
            return super().create(key, data)

    spool = Spool(tmp_path / "spool")
    rounds: list[tuple[int, bool]] = []
    shipper = Shipper(
        spool,
        lambda: Flaky(tmp_path / "objects"),
        ship_seconds=1,
        ship_bytes=1 << 20,
        shipped=lambda count, reached: rounds.append((count, reached)),
    )
    for i in range(3):
        spool.append(stored(record(f"r{i}")))
        assert not shipper.run_once()
    away = False
    assert shipper.run_once() and shipper.run_once()
    assert set(calls(store)) == {"r0", "r1", "r2"}
    assert [reached for _, reached in rounds] == [False] * 3 + [True] * 2
    # One object for the first, one for all that came while the store was away.
    assert len(list(store.list())) == 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "begin", "finish"]), st.integers(0, 5)),
        st.tuples(st.sampled_from(["seal", "ship", "crash", "copy-back"]), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_any_order_of_appends_seals_ships_and_crashes_delivers_each_once(
    steps: list[tuple[str, int]],
) -> None:
    import tempfile

    root = Path(tempfile.mkdtemp())
    try:
        store = DirectoryStore(root / "objects")
        spool = Spool(root / "spool")
        expected: dict[str, CallRecord] = {}
        begun: set[str] = set()
        for count, (step, value) in enumerate(steps):
            if step == "append":
                name = f"a{count}"
                spool.append(stored(record(name)))
                expected[name] = record(name)
            elif step == "begin":
                name = f"b{count}-{value}"
                spool.append(stored(record(name)), provisional=True)
                expected[name] = record(name)
                begun.add(name)
            elif step == "finish" and begun:
                name = sorted(begun)[value % len(begun)]
                begun.discard(name)
                spool.append(stored(record(name, audited=True)))
                expected[name] = record(name, audited=True)
            elif step == "seal":
                spool.seal()
            elif step == "ship":
                spool.seal()
                for path in ready_files(spool.folder):
                    ship_file(store, path)
            elif step == "copy-back":
                for path in ready_files(spool.folder):
                    kept = path.read_bytes()
                    ship_file(store, path)
                    path.write_bytes(kept)
            elif step == "crash":
                crash(spool)
                spool = Spool(root / "spool")
                begun.clear()  # whoever would have finished them is gone
        ship_all(spool, store)
        assert calls(store) == expected
        spool.close()
    finally:
        shutil.rmtree(root)
