"""Every adapter that must not be loaded is refused, with a message that says why."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.artifacts.base import BaseShape, fingerprint, read_base_shape
from infra.artifacts.folder import pull, verify_folder
from infra.artifacts.manifest import CONFIG, MANIFEST, PAYLOAD, WEIGHTS, ArtifactError
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from tests.infra.artifacts.building import make_adapter, seal, tensors
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseShape:
    return read_base_shape(base_folder)


@pytest.fixture
def folder(tmp_path: Path, base: BaseShape) -> Path:
    make_adapter(tmp_path / "adapter", base.digest)
    return tmp_path / "adapter"


def upload(store: ObjectStore, folder: Path, location: str | None = None) -> str:
    manifest = verify_folder(folder)
    location = location or f"adapters/{manifest.task_id}/{manifest.digest}"
    for path in folder.iterdir():
        store.put(f"{location}/{path.name}", path.read_bytes())
    return location


def test_a_sound_folder_is_accepted(folder: Path, base: BaseShape) -> None:
    manifest = verify_folder(folder, base, max_rank=8)
    assert manifest.name == f"lights@{manifest.digest[:16]}"
    assert set(manifest.files) == set(PAYLOAD)


def test_the_base_shape_is_read_without_torch(base: BaseShape, base_folder: Path) -> None:
    assert base.matrices["model.layers.0.self_attn.q_proj"] == (64, 64)
    assert base.matrices["model.layers.1.mlp.down_proj"] == (64, 128)
    assert base.digest == fingerprint(base_folder)


def test_the_fingerprint_changes_with_weights_and_tokenizer(
    tmp_path: Path, base: BaseShape
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    assert fingerprint(other) != base.digest
    same = make_tiny_model(tmp_path / "same")
    assert fingerprint(same) == base.digest
    tokenizer = json.loads((same / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (same / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert fingerprint(same) != base.digest


def test_a_base_folder_of_pickled_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        read_base_shape(tmp_path)


def test_no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        verify_folder(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        verify_folder(tmp_path / "absent")


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.pkl", "weights.pt", "a.ckpt"])
def test_a_pickle_is_refused_unopened(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ArtifactError, match="pickle"):
        verify_folder(folder)


def test_a_pickle_under_the_name_of_the_weights_is_refused(folder: Path, base: BaseShape) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": list(range(1000))}))
    seal(folder, base.digest)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        verify_folder(folder, base)


def test_a_file_that_does_not_belong_is_refused(folder: Path) -> None:
    (folder / "modeling.py").write_text("print('hello')")
    with pytest.raises(ArtifactError, match="does not belong"):
        verify_folder(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)
    with pytest.raises(ArtifactError, match="does not belong"):
        verify_folder(folder)


@pytest.mark.parametrize("name", PAYLOAD)
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} .* is corrupt"):
        verify_folder(folder)


def test_a_manifest_that_contradicts_itself(folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text())
    for change in ({"name": "other@0"}, {"digest": "0" * 64}, {"task_id": "../x"}, {"files": {}}):
        (folder / MANIFEST).write_text(json.dumps({**body, **change}))
        with pytest.raises(ArtifactError, match=r"manifest\.json is not valid"):
            verify_folder(folder)
    (folder / MANIFEST).write_text("{half")
    with pytest.raises(ArtifactError, match=r"manifest\.json is not valid"):
        verify_folder(folder)


def test_another_base_model(folder: Path, base: BaseShape) -> None:
    other = BaseShape("f" * 64, base.matrices)
    with pytest.raises(ArtifactError, match="was trained on base tiny"):
        verify_folder(folder, other)


def test_a_rank_above_the_engines(folder: Path, base: BaseShape) -> None:
    with pytest.raises(ArtifactError, match="rank 4; the engine takes 1 to 2"):
        verify_folder(folder, base, max_rank=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"target_modules": "all-linear"}, "only LoRA with listed"),
        ({"use_dora": True}, "use_dora is not served"),
        ({"use_rslora": True}, "use_rslora is not served"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not served"),
        ({"bias": "all"}, "biases"),
        ({"r": "many"}, "not a LoRA configuration"),
        ({"target_modules": ["q_proj"]}, "v_proj is not among its target modules"),
        ({"r": 8}, "has rank 4 and 4, its config says 8"),
    ],
)
def test_configurations_that_are_not_served(
    tmp_path: Path, base: BaseShape, changes: dict[str, Any], message: str
) -> None:
    make_adapter(tmp_path / "a", base.digest, changes=changes)
    with pytest.raises(ArtifactError, match=message):
        verify_folder(tmp_path / "a", base)


def _rename(old: str, new: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(weights: dict[str, np.ndarray]) -> None:
        for name in [name for name in weights if old in name]:
            weights[name.replace(old, new)] = weights.pop(name)

    return change


def _not_finite(weights: dict[str, np.ndarray]) -> None:
    next(iter(weights.values()))[0, 0] = np.nan


def _no_partner(weights: dict[str, np.ndarray]) -> None:
    weights.pop(next(name for name in weights if "lora_B" in name))


def _too_wide(weights: dict[str, np.ndarray]) -> None:
    for name in [name for name in weights if "layers.1.self_attn.v_proj.lora_B" in name]:
        weights[name] = np.zeros((64, 4), np.float32)


def _integers(weights: dict[str, np.ndarray]) -> None:
    name = next(iter(weights))
    weights[name] = weights[name].astype(np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename("layers.1", "layers.9"), "base model has no module model.layers.9"),
        (_rename("lora_A", "lora_magnitude_vector"), "not a LoRA matrix"),
        (_not_finite, "not finite"),
        (_no_partner, "without its partner"),
        (_too_wide, "is 64 x 64, the base model's is 32 x 64"),
        (_integers, "not a LoRA matrix in float"),
        (dict.clear, "holds no LoRA matrices"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, base: BaseShape, change: Callable[[Any], None], message: str
) -> None:
    weights = tensors()
    change(weights)
    make_adapter(tmp_path / "a", base.digest, weights=weights)
    with pytest.raises(ArtifactError, match=message):
        verify_folder(tmp_path / "a", base)


def test_pull_brings_a_verified_folder_and_keeps_it(
    folder: Path, store: ObjectStore, tmp_path: Path, base: BaseShape
) -> None:
    location = upload(store, folder)
    pulled = pull(store, location, tmp_path / "cache")
    assert verify_folder(pulled, base) == verify_folder(folder, base)
    stamp = (pulled / WEIGHTS).stat().st_mtime_ns
    assert pull(store, location, tmp_path / "cache") == pulled
    assert (pulled / WEIGHTS).stat().st_mtime_ns == stamp


def test_pull_of_a_sound_copy_does_not_need_the_store(
    folder: Path, store: ObjectStore, tmp_path: Path
) -> None:
    location = upload(store, folder)
    pulled = pull(store, location, tmp_path / "cache")
    for info in list(store.list(location)):
        store.delete(info.key)
    assert pull(store, location, tmp_path / "cache") == pulled


@pytest.mark.parametrize("fault", ["changed", "cut off"])
def test_pull_refuses_what_is_corrupt_in_storage(
    folder: Path, store: ObjectStore, tmp_path: Path, fault: str
) -> None:
    location = upload(store, folder)
    data = bytearray(store.get(f"{location}/{WEIGHTS}"))
    if fault == "changed":
        data[-1] ^= 255
    else:
        del data[-100:]
    store.put(f"{location}/{WEIGHTS}", bytes(data))
    with pytest.raises(ArtifactError, match="is corrupt"):
        pull(store, location, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", [MANIFEST, CONFIG, WEIGHTS])
def test_pull_refuses_what_is_incomplete(
    folder: Path, store: ObjectStore, tmp_path: Path, name: str
) -> None:
    location = upload(store, folder)
    store.delete(f"{location}/{name}")
    with pytest.raises(ArtifactError, match=r"no adapter at|is incomplete"):
        pull(store, location, tmp_path / "cache")


def test_pull_refuses_an_adapter_under_anothers_location(
    folder: Path, store: ObjectStore, tmp_path: Path
) -> None:
    location = upload(store, folder, f"adapters/lights/{'0' * 64}")
    with pytest.raises(ArtifactError, match="whose digest is another"):
        pull(store, location, tmp_path / "cache")


def test_pull_replaces_a_damaged_copy(folder: Path, store: ObjectStore, tmp_path: Path) -> None:
    location = upload(store, folder)
    pulled = pull(store, location, tmp_path / "cache")
    (pulled / WEIGHTS).write_bytes(b"half a fi")
    again = pull(store, location, tmp_path / "cache")
    assert again == pulled
    assert verify_folder(again).name == pulled.name


HALF_A_PULL = """
import io, sys, time
from pathlib import Path
from infra.artifacts.folder import pull
from infra.objects.open import open_store
from infra.settings.serving import Storage

url, location, cache = sys.argv[1:]
store = open_store(Storage(url=url))

class Half(io.BytesIO):
    def read(self, count=-1):
        if self.tell():
            print("half", flush=True)
            time.sleep(600)
        return super().read(len(self.getbuffer()) // 2)

class Stalling:
    # The object store, whose connection stalls in the middle of the weights.
    def open(self, key):
        kind = Half if key.endswith(".safetensors") else io.BytesIO
        return kind(store.get(key))

pull(Stalling(), location, Path(cache))
"""


def test_a_pull_that_was_killed_leaves_nothing_that_could_be_taken_for_an_adapter(
    folder: Path, settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    location = upload(store, folder)
    cache = tmp_path / "cache"
    arguments = [sys.executable, "-c", HALF_A_PULL, settings.storage.url, location, str(cache)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.kill()
    process.wait(10)
    process.stdout.close()
    (scratch,) = cache.iterdir()
    assert scratch.name.startswith(".pull-")
    assert (scratch / WEIGHTS).stat().st_size < (folder / WEIGHTS).stat().st_size
    pulled = pull(store, location, cache)
    assert verify_folder(pulled) == verify_folder(folder)


def test_pulls_at_once_agree(folder: Path, store: ObjectStore, tmp_path: Path) -> None:
    location = upload(store, folder)
    results: list[Path | Exception] = []

    def one() -> None:
        try:
            results.append(pull(store, location, tmp_path / "cache"))
        except ArtifactError as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {str(result) for result in results} == {
        str(tmp_path / "cache" / verify_folder(folder).name)
    }
    assert len(results) == 8
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [verify_folder(folder).name]
