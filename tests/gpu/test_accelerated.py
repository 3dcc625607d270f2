"""The unsloth backend with its GPU settings, on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import digest_folder, verify_folder
from tests.tiny_model import make_tiny_model
from tests.tiny_run import tiny_run, train_to_end
from trainers.artifact import package
from trainers.run_folder import RunFolder, read_tail

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU that torch can use")


@pytest.mark.parametrize("backend", ["unsloth", "peft"])
def test_a_run_on_the_gpu_learns_and_fits_the_base(tmp_path: Path, backend: str) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")
    # Head size 64: GPU attention kernels take no smaller ones.
    base = make_tiny_model(tmp_path / "base", hidden=256, heads=4, kv_heads=2)
    run = tiny_run(
        tmp_path / "run",
        base,
        steps=40,
        batch_size=8,
        request={"backend": backend, "allow_cpu": False},
    )
    assert train_to_end(run, 600) == 0, run.log_file.read_text()
    losses = [event["loss"] for event in read_tail(run.events_file) if event.get("tokens")]
    assert sum(losses[-5:]) / 5 < losses[0] - 1
    result = run.result()
    assert result is not None
    assert result.backend == backend
    assert verify_folder(package_of(run), read_base_shape(base), max_rank=4).task_id == "lights"


@pytest.mark.parametrize("backend", ["unsloth", "peft"])
def test_the_same_spec_and_seed_give_the_same_digest_on_the_same_gpu(
    tmp_path: Path, backend: str
) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")
    base = make_tiny_model(tmp_path / "base", hidden=256, heads=4, kv_heads=2)
    digests = []
    for name in ("a", "b"):
        run = tiny_run(tmp_path / name, base, request={"backend": backend, "allow_cpu": False})
        assert train_to_end(run, 600) == 0, run.log_file.read_text()
        digests.append(digest_folder(run.adapter))
    assert digests[0] == digests[1]


def test_auto_chooses_unsloth_where_there_is_a_gpu() -> None:
    from trainers.run import open_backend

    expected = "unsloth" if find_spec("unsloth") else "peft"
    assert open_backend("auto", allow_cpu=False).name == expected


@pytest.mark.parametrize("backend", ["unsloth", "peft"])
def test_grouped_and_packed_batches_learn_alike_on_the_gpu(tmp_path: Path, backend: str) -> None:
    """They see the same examples, which do not see each other: their losses stay together."""
    if find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")
    base = make_tiny_model(tmp_path / "base", hidden=256, heads=4, kv_heads=2)
    losses = {}
    for batching in ("grouped", "packed"):
        run = tiny_run(
            tmp_path / batching,
            base,
            steps=20,
            batching=batching,
            # Unsloth casts to bf16 wherever the GPU has it.
            precision="fp32" if backend == "peft" else "auto",
            request={"backend": backend, "allow_cpu": False},
        )
        assert train_to_end(run, 600) == 0, run.log_file.read_text()
        result = run.result()
        assert result is not None
        assert (result.peak_memory_bytes or 0) > 0
        losses[batching] = result.loss
    assert losses["packed"] == pytest.approx(losses["grouped"], rel=0.02)


def test_a_base_held_in_4_bit_trains_an_adapter_for_the_base_as_it_is(tmp_path: Path) -> None:
    for needed in ("unsloth", "bitsandbytes"):
        if find_spec(needed) is None:
            pytest.skip(f"the package {needed} is not installed")
    base = make_tiny_model(tmp_path / "base", hidden=256, heads=4, kv_heads=2)
    run = tiny_run(
        tmp_path / "run",
        base,
        steps=8,
        load_in_4bit=True,
        request={"backend": "unsloth", "allow_cpu": False},
    )
    assert train_to_end(run, 600) == 0, run.log_file.read_text()
    verify_folder(package_of(run), read_base_shape(base), max_rank=4)


def package_of(run: RunFolder) -> Path:
    return package(run.path).folder
