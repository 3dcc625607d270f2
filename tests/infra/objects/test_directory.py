"""What is particular to the directory: its files, its locks, what a killed writer leaves."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from infra.objects.directory import STALE_TEMPORARY_SECONDS, DirectoryStore
from infra.objects.keys import RESERVED
from infra.objects.open import open_store
from infra.objects.store import ObjectExists, ObjectMissing, ObjectStoreError
from infra.settings.serving import Storage


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects", lock_timeout_seconds=0.2)


def test_an_object_is_a_file_of_its_name(directory: DirectoryStore) -> None:
    directory.put("a/b.txt", b"data")
    assert (directory.root / "a" / "b.txt").read_bytes() == b"data"
    (directory.root / "a" / "c.txt").write_bytes(b"by hand")
    assert directory.get("a/c.txt") == b"by hand"


def test_nothing_temporary_is_listed_or_left(directory: DirectoryStore) -> None:
    directory.put("a", b"1")
    directory.create("b", b"2")
    with pytest.raises(ObjectExists):
        directory.create("b", b"3")
    with pytest.raises(ObjectMissing):
        directory.replace("c", b"", "x")
    temporary = directory.root / RESERVED / "temporary"
    (temporary / "half-written").write_bytes(b"ha")
    assert [info.key for info in directory.list()] == ["a", "b"]
    assert [path.name for path in temporary.iterdir()] == ["half-written"]


def test_what_killed_writers_left_is_swept_when_it_is_old(directory: DirectoryStore) -> None:
    temporary = directory.root / RESERVED / "temporary"
    for name in ("old", "new"):
        (temporary / name).write_bytes(b"")
    past = time.time() - STALE_TEMPORARY_SECONDS - 10
    os.utime(temporary / "old", (past, past))
    DirectoryStore(directory.root)
    assert [path.name for path in temporary.iterdir()] == ["new"]


def test_a_stopped_writer_is_waited_for_only_so_long(directory: DirectoryStore) -> None:
    directory.put("a", b"1")
    locks = directory.root / RESERVED / "locks"
    held = [path.open("ab") for path in locks.iterdir()]
    for stream in held:
        fcntl.flock(stream, fcntl.LOCK_EX)
    with pytest.raises(ObjectStoreError, match="held the lock on a"):
        directory.put("a", b"2")
    assert directory.get("a") == b"1"
    for stream in held:
        stream.close()
    directory.put("a", b"2")


def test_one_key_cannot_be_the_folder_of_another(directory: DirectoryStore) -> None:
    directory.put("a/b", b"1")
    for attempt in (directory.put, directory.create):
        with pytest.raises(ObjectStoreError, match="folder of the other"):
            attempt("a", b"2")
        with pytest.raises(ObjectStoreError, match="folder of the other"):
            attempt("a/b/c", b"2")
    assert [info.key for info in directory.list()] == ["a/b"]


def test_an_edit_by_hand_changes_the_etag(directory: DirectoryStore) -> None:
    path = directory.root / "a"
    old = time.time() - 100
    directory.put("a", b"one")
    os.utime(path, (old, old))
    first = directory.info("a").etag
    assert directory.info("a").etag == first
    path.write_bytes(b"two")
    assert directory.info("a").etag != first


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ObjectStoreError, match=r"\[storage\] url"):
        DirectoryStore(tmp_path / "file")


def test_opening_by_url(tmp_path: Path) -> None:
    for url in (str(tmp_path / "x"), f"file://{tmp_path}/x"):
        store = open_store(Storage(url=url))
        assert isinstance(store, DirectoryStore)
        assert store.root == tmp_path / "x"
    for url, message in (("gs://bucket", "gs://"), ("s3:///prefix", "no bucket")):
        with pytest.raises(ObjectStoreError, match=message):
            open_store(Storage(url=url))
