"""What every object store must do: a directory, and S3 over HTTP, pass the same suite."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.objects.keys import InvalidKey
from infra.objects.open import open_store
from infra.objects.store import (
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    ObjectStoreError,
)
from infra.settings.serving import Storage
from tests.contracts.servers import S3Server

_buckets = count()


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "directory":
        return Storage(url=str(tmp_path / "objects"), max_object_bytes=32 << 20)
    server: S3Server = request.getfixturevalue("s3_server")
    bucket = f"bucket-{next(_buckets)}"
    server.make_bucket(bucket)
    return Storage.model_validate(
        {
            "url": f"s3://{bucket}/some/prefix",
            "endpoint_url": server.endpoint_url,
            "region": server.region,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            "max_object_bytes": 32 << 20,
        }
    )


@pytest.fixture
def each_store(storage: Storage) -> ObjectStore:
    return open_store(storage)


def keys(store: ObjectStore, prefix: str = "", after: str = "") -> list[str]:
    return [found.key for found in store.list(prefix, after)]


def test_what_is_put_comes_back(each_store: ObjectStore) -> None:
    info = each_store.put("a/b/größe.bin", b"\x00\xff" * 1000)
    assert (info.key, info.size) == ("a/b/größe.bin", 2000)
    assert each_store.get("a/b/größe.bin") == b"\x00\xff" * 1000
    assert each_store.info("a/b/größe.bin") == info
    assert list(each_store.list()) == [info]


def test_put_overwrites_and_the_etag_tells(each_store: ObjectStore) -> None:
    first = each_store.put("k", b"one")
    second = each_store.put("k", b"two")
    assert first.etag != second.etag
    assert each_store.get("k") == b"two"
    assert each_store.info("k") == second
    assert each_store.put("k", b"one").etag == first.etag


def test_many_rewrites_of_one_size_keep_their_etags_apart(each_store: ObjectStore) -> None:
    for number in range(30):
        written = each_store.put("k", b"%03d" % number)
        assert each_store.info("k").etag == written.etag


def test_an_empty_object_is_an_object(each_store: ObjectStore) -> None:
    each_store.put("empty", b"")
    assert each_store.get("empty") == b""
    assert each_store.open("empty").read() == b""
    assert each_store.info("empty").size == 0


def test_create_writes_once(each_store: ObjectStore) -> None:
    made = each_store.create("k", b"one")
    with pytest.raises(ObjectExists, match="k is already there"):
        each_store.create("k", b"two")
    assert each_store.get("k") == b"one"
    assert each_store.info("k") == made
    each_store.delete("k")
    each_store.create("k", b"three")
    assert each_store.get("k") == b"three"


def test_replace_compares_and_swaps(each_store: ObjectStore) -> None:
    first = each_store.put("k", b"one")
    second = each_store.replace("k", b"two", first.etag)
    with pytest.raises(ObjectChanged):
        each_store.replace("k", b"three", first.etag)
    assert each_store.get("k") == b"two"
    each_store.replace("k", b"three", second.etag)
    assert each_store.get("k") == b"three"


def test_what_is_absent_is_missing(each_store: ObjectStore) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: each_store.get("no/such"),
        lambda: each_store.open("no/such"),
        lambda: each_store.info("no/such"),
        lambda: each_store.replace("no/such", b"", "0" * 32),
    ]
    for attempt in attempts:
        with pytest.raises(ObjectMissing, match="no/such"):
            attempt()
    each_store.delete("no/such")
    assert keys(each_store, "no/") == []
    each_store.put("folder/object", b"")
    with pytest.raises(ObjectMissing):
        each_store.get("folder")
    each_store.delete("folder")
    assert keys(each_store) == ["folder/object"]


@pytest.mark.parametrize("attempt", ["create", "replace"])
def test_of_many_at_once_one_wins(each_store: ObjectStore, attempt: str) -> None:
    etag = each_store.put("replaced", b"start").etag
    barrier = Barrier(6)

    def act(number: int) -> bool:
        barrier.wait(30)
        data = b"by %d" % number
        try:
            if attempt == "create":
                each_store.create("created", data)
            else:
                each_store.replace("replaced", data, etag)
        except (ObjectExists, ObjectChanged):
            return False
        return each_store.get(f"{attempt}d") == data

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(act, range(6))) == [False] * 5 + [True]


def test_two_processes_count_without_losing_one(storage: Storage) -> None:
    open_store(storage).put("counter", b"0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=count_up, args=(storage, 10)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert open_store(storage).get("counter") == b"20"


def count_up(storage: Storage, times: int) -> None:
    store = open_store(storage)
    while times:
        info = store.info("counter")
        value = int(store.get("counter"))
        try:
            store.replace("counter", b"%d" % (value + 1), info.etag)
        except ObjectChanged:
            continue
        times -= 1


def test_listing_is_in_order_by_prefix_and_after(each_store: ObjectStore) -> None:
    names = ["a-b", "a.b", "a/b", "a/b-c", "a/c/d", "a0", "b/z", "ä", "Z"]
    for name in names:
        each_store.put(name, name.encode())
    assert keys(each_store) == sorted(names)
    assert keys(each_store, "a/") == ["a/b", "a/b-c", "a/c/d"]
    assert keys(each_store, "a/b") == ["a/b", "a/b-c"]
    assert keys(each_store, "a") == ["a-b", "a.b", "a/b", "a/b-c", "a/c/d", "a0"]
    assert keys(each_store, "nothing") == []
    for after in [*names, "a/", "a/c", "a/c/", "a/c/e", "0", "zz", "ä0"]:
        assert keys(each_store, after=after) == [key for key in sorted(names) if key > after]
    assert keys(each_store, "a/", "a/b") == ["a/b-c", "a/c/d"]


def test_listing_goes_past_one_page(each_store: ObjectStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: each_store.put(f"logs/{n:05d}", b"x"), range(1030)))
    found = keys(each_store, "logs/")
    assert found == [f"logs/{number:05d}" for number in range(1030)]
    assert len(keys(each_store, "logs/", "logs/00999")) == 30


def test_deleting_while_listing_is_no_error(each_store: ObjectStore) -> None:
    for number in range(5):
        each_store.put(f"k{number}", b"")
    listing = each_store.list()
    seen = [next(listing).key]
    for number in (0, 1, 2):
        each_store.delete(f"k{number}")
    seen += [found.key for found in listing]
    assert seen[0] == "k0"
    assert seen[-2:] == ["k3", "k4"]


def test_an_open_stream_reads_in_parts_and_seeks(each_store: ObjectStore) -> None:
    data = os.urandom(3 << 20)
    each_store.put("big", data)
    with each_store.open("big") as stream:
        assert stream.read(10) == data[:10]
        stream.seek(-100, os.SEEK_END)
        assert stream.read() == data[-100:]
        stream.seek(1 << 20)
        assert stream.read(1 << 20) == data[1 << 20 : 2 << 20]
        assert stream.tell() == 2 << 20
        assert stream.read() == data[2 << 20 :]


def test_a_reader_never_sees_half_an_object(each_store: ObjectStore) -> None:
    versions = [bytes([number]) * 200_000 for number in range(4)]
    each_store.put("k", versions[0])

    def write() -> None:
        for number in range(12):
            each_store.put("k", versions[number % 4])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            assert each_store.get("k") in versions
        writing.result()


BAD_KEYS = [
    *["", "/absolute", "../up", "a/../../b", "a//b", "a/./b", "a/", "a\\b", "a\nb", "a\x00b"],
    *["x" * 300, "x/" * 600 + "x", ".nightschool/locks/1", "half\ud800"],
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_a_key_that_not_every_store_can_hold_is_refused(each_store: ObjectStore, key: str) -> None:
    for attempt in (each_store.get, each_store.open, each_store.info, each_store.delete):
        with pytest.raises(InvalidKey, match="use a relative path"):
            attempt(key)
    with pytest.raises(InvalidKey):
        each_store.put(key, b"")
    with pytest.raises(InvalidKey):
        each_store.create(key, b"")
    assert keys(each_store) == []


def test_an_object_above_the_bound_is_refused(storage: Storage) -> None:
    generous = open_store(storage)
    strict = open_store(storage.model_copy(update={"max_object_bytes": 1024}))
    generous.put("large", b"x" * 2000)
    with pytest.raises(ObjectStoreError, match="max_object_bytes"):
        strict.put("other", b"x" * 1025)
    with pytest.raises(ObjectStoreError, match="open"):
        strict.get("large")
    with strict.open("large") as stream:
        assert stream.read() == b"x" * 2000
    assert keys(strict) == ["large"]


def test_another_opening_sees_the_same(storage: Storage) -> None:
    written = open_store(storage).put("a/b", b"data")
    again = open_store(storage)
    assert again.get("a/b") == b"data"
    assert list(again.list()) == [written]


def test_a_writer_killed_at_any_moment_leaves_whole_objects(storage: Storage) -> None:
    """kill -9 in the middle of writing; a large object at a time, several times over."""
    context = multiprocessing.get_context("spawn")
    store = open_store(storage)
    for attempt in range(3):
        worker = context.Process(target=write_forever, args=(storage, attempt))
        worker.start()
        deadline = time.monotonic() + 60
        while not keys(store, f"run{attempt}/") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(30)
    found = list(store.list("run"))
    assert {info.key.split("/")[0] for info in found} == {"run0", "run1", "run2"}
    for info in found:
        assert set(store.get(info.key)) == {ord("x")}
        assert info.size == 1 << 20


def write_forever(storage: Storage, attempt: int) -> None:
    store = open_store(storage)
    for number in range(100_000):
        store.put(f"run{attempt}/{number % 50}", b"x" * (1 << 20))


_segment = st.text("ab.-_0/", min_size=1, max_size=5)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(_segment, max_size=8), prefix=_segment | st.just(""), after=_segment)
def test_listing_agrees_with_a_dictionary(
    each_store: ObjectStore, names: list[str], prefix: str, after: str
) -> None:
    for info in list(each_store.list()):
        each_store.delete(info.key)
    model: dict[str, ObjectInfo] = {}
    for name in names:
        key = f"x/{name}/y"
        try:
            model[key] = each_store.put(key, name.encode())
        except InvalidKey:
            continue
        except ObjectStoreError:  # in a directory one key cannot be the folder of another
            assert any(
                other.startswith(f"{key}/") or key.startswith(f"{other}/") for other in model
            )
    wanted = [k for k in sorted(model) if k.startswith(f"x/{prefix}") and k > f"x/{after}"]
    assert [info.key for info in each_store.list(f"x/{prefix}", f"x/{after}")] == wanted
    assert all(each_store.info(key) == info for key, info in model.items())
