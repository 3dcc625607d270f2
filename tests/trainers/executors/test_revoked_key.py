"""A storage key that is taken away while a run is under way, on a server that really refuses it."""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.objects.directory import DirectoryStore
from infra.objects.open import open_store
from infra.objects.store import ObjectRefused, ObjectStore, ObjectStoreError
from infra.settings.serving import Storage
from tests.contracts.guarded_s3 import READING, GuardedS3, StorageKey
from tests.tiny_run import tiny_run, wait_until
from trainers.artifact import package, publish
from trainers.executors.on_ray import RayExecutor
from trainers.executors.protocol import RunOutcome, TrainJob
from trainers.executors.supervisor import supervise
from trainers.failures import classify
from trainers.run_folder import RunFolder, StoragePlace
from trainers.run_storage import RunStorage

OPERATIONS: dict[str, Callable[[ObjectStore], object]] = {
    "put": lambda store: store.put("a", b"x"),
    "create": lambda store: store.create("new", b"x"),
    "replace": lambda store: store.replace("a", b"x", "etag"),
    "delete": lambda store: store.delete("a"),
    "get": lambda store: store.get("a"),
    "info": lambda store: store.info("a"),
    "list": lambda store: list(store.list()),
}


@pytest.fixture
def key(guarded_s3: GuardedS3) -> StorageKey:
    return guarded_s3.new_key()


def refused(store: ObjectStore) -> set[str]:
    """The operations that the store would not do; the others it did."""
    found = set()
    for name, operation in OPERATIONS.items():
        try:
            operation(store)
        except ObjectRefused as error:
            assert classify(error).state == "storage_refused"
            found.add(name)
        except ObjectStoreError:
            pass
    return found


def test_every_way_of_being_refused_is_one_whatever_was_asked_for(key: StorageKey) -> None:
    store = key.store()
    assert refused(store) == set(), "of a good key"
    wrong = Storage.model_validate({**key.values, "secret_access_key": "guessed"})
    assert refused(open_store(wrong)) == set(OPERATIONS)
    key.allow(*READING)
    assert refused(store) >= {"put", "create", "delete"}
    assert not refused(store) & {"get", "info", "list"}
    key.revoke()
    assert refused(store) == set(OPERATIONS)


def test_a_server_that_is_not_there_refuses_nobody(key: StorageKey) -> None:
    away = {**key.values, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(ObjectStoreError) as found:
        open_store(Storage.model_validate(away)).get("a")
    assert classify(found.value).state == "storage_unreachable"


def test_a_worker_without_a_key_is_refused(
    key: StorageKey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ObjectRefused, match="credentials"):
        open_store(Storage.model_validate(key.place)).get("a")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may act as another user")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    store.put("a/b", b"x")
    (tmp_path / "objects").chmod(0o700)
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        for operation in (lambda: store.get("a/b"), lambda: list(store.list())):
            with pytest.raises(ObjectRefused):
                operation()
    finally:
        os.seteuid(0)


def test_revoked_while_it_trains_the_run_ends_well_and_says_that_only_its_disk_has_it(
    key: StorageKey, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in key.environment.items():
        monkeypatch.setenv(name, value)
    run = tiny_run(tmp_path / "run", tiny_base, steps=60, request={"storage": key.place})
    storage = RunStorage.of(key.seen_by_others(), run.spec().digest)
    RunStorage.of(key.store(), run.spec().digest).push_inputs(run)
    place = StoragePlace.model_validate(key.place)
    job = TrainJob(run.path, storage=place, run_id=storage.run_id)
    outcomes: list[RunOutcome] = []
    watched = threading.Thread(target=lambda: outcomes.append(supervise(job)))
    watched.start()
    wait_until(storage.steps)
    key.revoke()
    watched.join(240)
    (outcome,) = outcomes
    assert (outcome.state, outcome.failure, outcome.attempts) == ("done", "storage_refused", 1)
    assert "InvalidAccessKeyId" in (outcome.error or "")
    assert outcome.result is not None and outcome.result.steps == 60
    assert any("storing the checkpoint" in note for note in outcome.result.notes)
    notes = run.notes()
    assert "storing the result failed (storage_refused)" in notes[-1]
    # Nothing of the adapter is to be seen, and what a lost machine would go on from is whole.
    assert not storage.pull_result(RunFolder(tmp_path / "elsewhere"))
    assert storage.pull_checkpoint(RunFolder(tmp_path / "another")) in storage.steps()
    # With a good key again the result is left there, without another process.
    for name, value in {**key.values, **key.administrator}.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_STORAGE__{name.upper()}", value)
    assert (again := supervise(job)).failure is None and again.attempts == 1
    assert storage.pull_result(RunFolder(tmp_path / "elsewhere"))


def test_revoked_before_it_begins_on_a_worker_with_a_disk_of_its_own(
    key: StorageKey, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in key.environment.items():
        monkeypatch.setenv(name, value)
    planned = tiny_run(tmp_path / "planner", tiny_base)
    storage = RunStorage.of(key.store(), planned.spec().digest)
    storage.push_inputs(planned)
    job = TrainJob(
        tmp_path / "worker",
        storage=StoragePlace.model_validate(key.place),
        run_id=storage.run_id,
    )
    key.revoke()
    outcome = supervise(job)
    assert (outcome.state, outcome.failure) == ("failed", "storage_refused")
    assert "InvalidAccessKeyId" in (outcome.error or "")


def test_refused_on_ray_it_is_no_lost_worker(
    ray_executor: RayExecutor, key: StorageKey, tiny_base: Path, tmp_path: Path
) -> None:
    """Ray's workers have settings of their own, here without any key."""
    planned = tiny_run(tmp_path / "planner", tiny_base)
    storage = RunStorage.of(key.store(), planned.spec().digest)
    storage.push_inputs(planned)
    place = StoragePlace.model_validate(key.place)
    job = TrainJob(tmp_path / "worker", storage=place, run_id=storage.run_id)
    outcome = ray_executor.submit(job).wait(240)
    assert (outcome.state, outcome.failure) == ("failed", "storage_refused"), outcome
    assert "[storage] credentials" in (outcome.error or "")


def test_a_worker_that_sees_neither_folder_nor_copy_says_so(tmp_path: Path) -> None:
    outcome = supervise(TrainJob(tmp_path / "nowhere"))
    assert (outcome.state, outcome.failure) == ("failed", "storage_unreachable")
    assert "training.store_checkpoints" in (outcome.error or "")


def test_revoked_at_the_upload_no_adapter_is_seen(
    key: StorageKey, tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", tiny_base, steps=2)
    assert supervise(TrainJob(run.path)).state == "done"
    folder = package(run.path).folder
    real = key.store()

    class Revoked:
        """The real store, whose key is taken away after the first file."""

        def create(self, name: str, data: bytes) -> object:
            made = real.create(name, data)
            key.revoke()
            return made

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    with pytest.raises(ObjectRefused):
        publish(Revoked(), folder)  # type: ignore[arg-type]
    stored = [item.key for item in key.seen_by_others().list("adapters/")]
    assert stored and not [name for name in stored if name.endswith("manifest.json")]
    assert publish(key.seen_by_others(), folder).location in stored[0]
