"""A run whose machine is lost goes on from object storage on another, to the same adapter."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from infra.artifacts.folder import digest_folder
from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.serving import Storage
from tests.contracts.servers import S3Server
from tests.tiny_run import tiny_run, training_process, wait_until
from trainers.backends.checkpoints import checkpoint_steps
from trainers.executors.protocol import TrainJob
from trainers.executors.supervisor import supervise
from trainers.run import train
from trainers.run_folder import RunFolder, StoragePlace, append_line, read_tail
from trainers.run_storage import RunStorage, stored_runs


@pytest.fixture
def keys(s3_server: S3Server) -> dict[str, str]:
    """A fresh bucket, and the settings that a worker has for it."""
    bucket = f"runs-{uuid.uuid4().hex[:12]}"
    values = {
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
        "region": s3_server.region,
        "endpoint_url": s3_server.endpoint_url,
        "url": f"s3://{bucket}/school",
    }
    s3_server.make_bucket(bucket)
    return values


def environment(keys: dict[str, str]) -> dict[str, str]:
    return {f"NIGHTSCHOOL_STORAGE__{name.upper()}": value for name, value in keys.items()}


def place(keys: dict[str, str]) -> dict[str, str]:
    return {name: keys[name] for name in ("url", "endpoint_url", "region")}


def test_killed_on_one_worker_it_ends_on_another(
    keys: dict[str, str], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = tiny_run(tmp_path / "undisturbed", tiny_base, steps=24)
    train(undisturbed)

    store: ObjectStore = open_store(Storage.model_validate(keys))
    run = tiny_run(tmp_path / "one", tiny_base, steps=24, request={"storage": place(keys)})
    storage = RunStorage.of(store, run.spec().digest)
    storage.push_inputs(run)
    with training_process(run, **environment(keys)) as process:
        wait_until(lambda: storage.steps() or process.poll() is not None)
        process.kill()
        process.wait()
    assert run.result() is None, "it was to be killed before its end"
    stored = storage.steps()
    assert stored
    shutil.rmtree(run.path)  # the machine is gone, with its disk

    other = RunFolder(tmp_path / "two")
    assert storage.pull_inputs(other)
    for name, value in environment(keys).items():
        monkeypatch.setenv(name, value)
    job = TrainJob(other.path, storage=StoragePlace(**place(keys)), run_id=storage.run_id)
    assert supervise(job).state == "done"
    steps = [event["step"] for event in read_tail(other.events_file) if event.get("tokens")]
    assert steps[-1] == 24
    assert steps.count(1) == 1, "it began anew"
    assert digest_folder(other.adapter) == digest_folder(undisturbed.adapter)

    # A third machine finds the result; and what is done with is cleared.
    third = RunFolder(tmp_path / "three")
    assert storage.pull_result(third)
    assert third.result() == other.result()
    assert digest_folder(third.adapter) == digest_folder(undisturbed.adapter)
    assert stored_runs(store)[storage.run_id] > 0
    storage.clear()
    assert stored_runs(store) == {}


def test_a_worker_with_a_disk_of_its_own_hears_what_was_asked_last(
    store: ObjectStore, tiny_base: Path, tmp_path: Path
) -> None:
    planned = tiny_run(tmp_path / "planner", tiny_base, request={"submitted": 1, "deadline": 10})
    storage = RunStorage.of(store, planned.spec().digest)
    storage.push_inputs(planned)
    worker = RunFolder(tmp_path / "worker")
    assert storage.pull_inputs(worker)
    append_line(worker.attempts_file, {"attempt": 1, "pid": 1, "time": 1})
    assert storage.pull_inputs(worker) and len(worker.attempts()) == 1, "asked for once"

    planned.ask(planned.request().model_copy(update={"submitted": 2, "deadline": 20}))
    storage.push_inputs(planned)
    assert storage.pull_inputs(worker)
    assert (worker.request().deadline, worker.attempts()) == (20, [])
    # What reached only the folder that both see is not undone by what is stored.
    worker.ask(planned.request().model_copy(update={"submitted": 3, "deadline": 30}))
    assert storage.pull_inputs(worker) and worker.request().deadline == 30


def test_a_damaged_checkpoint_is_passed_over(
    store: ObjectStore, tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "r", tiny_base, steps=12)
    train(run)
    storage = RunStorage.of(store, run.spec().digest)
    assert sorted(checkpoint_steps(run.checkpoints)) == [8, 12]
    for step in (8, 12):
        storage.push_checkpoint(run, run.checkpoints / f"checkpoint-{step}", step)
    store.put(f"{storage.prefix}/step-00000012/optimizer.pt.0000", b"damaged")
    other = RunFolder(tmp_path / "other")
    other.path.mkdir()
    assert storage.pull_checkpoint(other) == 8
    assert checkpoint_steps(other.checkpoints) == [8]
    assert not list(other.path.glob(".pull-*"))
