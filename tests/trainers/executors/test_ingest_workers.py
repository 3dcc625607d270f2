"""Who reads log objects: this process or a Ray cluster, with the same files and the same counts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from infra.objects.store import ObjectInfo, ObjectRefused
from infra.settings.learning import Ingest, Training
from infra.settings.model import Settings
from infra.settings.serving import Storage
from tests.contracts.guarded_s3 import READING, GuardedS3
from tests.trainers.recorded import SETTINGS, START, home, opened, put_log, ticket
from trainers.executors.on_ray import RayExecutor
from trainers.ingest import claims, on_ray
from trainers.ingest.ingest import IngestReport, ingest, totals
from trainers.ingest.on_ray import OnRay
from trainers.ingest.taking import Here, Workers, WorkersLost
from trainers.ingest.workers import on_cluster
from trainers.run_folder import StoragePlace
from trainers.run_storage import place_of

Opened = Callable[[Path], Workers]


@pytest.fixture(params=["here", "ray"])
def workers(request: pytest.FixtureRequest) -> Opened:
    if request.param == "here":
        return lambda folder: Here(
            DirectoryStore(folder / "objects"), SETTINGS.ingest, SETTINGS.anonymizer, 1 << 20
        )
    request.getfixturevalue("ray_executor")
    return on_the_cluster


def on_the_cluster(folder: Path, beat_seconds: float = 60) -> Workers:
    place = place_of(Storage(url=str(folder / "objects")))
    return OnRay(place, SETTINGS.ingest, SETTINGS.anonymizer, 1 << 20, beat_seconds=beat_seconds)


def filled(folder: Path) -> tuple[DirectoryStore, Database]:
    store, database = opened(folder)
    put_log(store, [home(n) for n in range(4)], sequence=1)
    put_log(store, [ticket(n) for n in range(3)], sequence=2, extra=b"rubbish")
    store.put("logs/v1/dt=2026-03-02/hh=09/other.jsonl.zst", b"not compressed at all")
    return store, database


def outcome(store: DirectoryStore, database: Database) -> tuple[object, ...]:
    files = {
        item.key: store.get(item.key)
        for prefix in ("calls/", "feedback/", "quarantine/")
        for item in store.list(prefix)
    }
    return files, sorted(claims.every_committed(database)), totals(database)


class Broken(BaseException):
    """Ends a run as kill -9 does: no handler of the product's catches it."""


def test_each_object_once_though_the_run_dies_between_and_goes_on(
    workers: Opened, tmp_path: Path
) -> None:
    plain = filled(tmp_path / "plain")
    ingest(*plain, SETTINGS, holder="night", now=START)
    expected = outcome(*plain)
    store, database = filled(tmp_path / "killed")

    def die(_: str) -> None:
        raise Broken

    def run(**more: object) -> IngestReport:
        return ingest(
            store,
            database,
            SETTINGS,
            holder="night",
            now=START,
            workers=workers(tmp_path / "killed"),
            **more,  # type: ignore[arg-type]
        )

    with pytest.raises(Broken):
        run(progress=die)
    assert len(claims.committed(database)) == 1
    rest = run()
    assert (rest.objects, rest.busy, rest.failed, rest.lost) == (2, 0, 0, 0)
    assert outcome(store, database) == expected
    assert run() == IngestReport()


def test_two_runs_at_once_share_the_objects(workers: Opened, tmp_path: Path) -> None:
    store, database = filled(tmp_path)
    others: list[IngestReport] = []

    def meanwhile(_: str) -> None:
        if not others:
            others.append(ingest(store, database, SETTINGS, holder="b", workers=workers(tmp_path)))

    mine = ingest(
        store, database, SETTINGS, holder="a", workers=workers(tmp_path), progress=meanwhile
    )
    assert mine.objects + others[0].objects == 3
    assert totals(database).calls == 7


def test_an_object_that_is_taken_over_meanwhile_counts_for_the_other(
    workers: Opened, tmp_path: Path
) -> None:
    store, database = filled(tmp_path)

    class Overtaken:
        """Loses its claim on each object after it was read and before it is committed."""

        def take(self, items, still_ours):  # type: ignore[no-untyped-def]
            for taken in workers(tmp_path).take(items, still_ours):
                assert claims.claim(database, taken.item, "slow", 600, START) is not None
                yield taken

    report = ingest(store, database, SETTINGS, holder="slow", now=START, workers=Overtaken())
    assert (report.objects, report.busy) == (0, 3)
    assert totals(database).objects == 0


def test_a_worker_that_is_lost_with_an_object_is_replaced(
    ray_executor: RayExecutor, tmp_path: Path
) -> None:
    plain = filled(tmp_path / "plain")
    ingest(*plain, SETTINGS, holder="night", now=START)
    store, database = filled(tmp_path / "lost")
    marker = tmp_path / "died"

    def read_and_die(row, **how):  # type: ignore[no-untyped-def]
        done = on_ray.read_object(row, **how)
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    workers = OnRay(
        place_of(Storage(url=str(tmp_path / "lost" / "objects"))),
        SETTINGS.ingest,
        SETTINGS.anonymizer,
        1 << 20,
        read=read_and_die,
    )
    report = ingest(store, database, SETTINGS, holder="night", now=START, workers=workers)
    assert marker.exists()
    assert (report.objects, report.calls, report.busy, report.lost) == (3, 7, 0, 0)
    assert outcome(store, database) == outcome(*plain)


def test_claims_are_kept_while_ray_reads(ray_executor: RayExecutor, tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    kept: set[ObjectInfo] = set()

    def still_ours(item: ObjectInfo) -> bool:
        kept.add(item)
        return True

    items = list(store.list("logs/"))
    taken = on_the_cluster(tmp_path, beat_seconds=0.01).take(items, still_ours)
    assert {one.item for one in taken} == kept == set(items)


def test_a_store_that_the_workers_cannot_reach_is_said(
    ray_executor: RayExecutor, tmp_path: Path
) -> None:
    store, database = filled(tmp_path)
    (tmp_path / "file").touch()
    workers = on_the_cluster(tmp_path / "file")
    with pytest.raises(WorkersLost, match=r"ingest\.executor = local"):
        ingest(store, database, SETTINGS, holder="a", workers=workers)
    assert totals(database).objects == 0


def test_a_worker_that_may_not_write_is_told_to_be_refused(
    guarded_s3: GuardedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = guarded_s3.new_key()
    put_log(key.store(), [home(1)])
    key.allow(*READING)
    for name, value in key.environment.items():
        monkeypatch.setenv(name, value)
    (item,) = key.store().list("logs/")
    place = StoragePlace.model_validate(key.place)
    row = {"item": json.dumps(asdict(item))}
    told = on_ray.read_object(row, place, SETTINGS.ingest, SETTINGS.anonymizer, 1 << 20)
    with pytest.raises(ObjectRefused):
        on_ray._taken(json.loads(told["told"]))


@pytest.mark.parametrize(
    ("executor", "url", "training", "ray"),
    [
        ("auto", "s3://logs/here", Training(ray_address="ray://there:10001"), True),
        ("auto", "var/objects", Training(ray_address="ray://there:10001"), False),
        ("auto", "s3://logs/here", Training(), False),
        ("auto", "s3://a", Training(ray_address="ray://a:1", executor="local"), False),
        ("local", "s3://logs/here", Training(ray_address="ray://there:10001"), False),
        ("ray", "var/objects", Training(), True),
    ],
)
def test_who_reads(executor: str, url: str, training: Training, ray: bool) -> None:
    settings = Settings(
        ingest=Ingest(executor=executor),  # type: ignore[arg-type]
        storage=Storage(url=url),
        training=training,
    )
    assert on_cluster(settings) is ray
