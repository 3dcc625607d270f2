"""Each way a run can go wrong ends in its named state, with a reason and no adapter to be seen."""

from __future__ import annotations

import errno
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_run import tiny_run, tiny_spec
from trainers import run as running
from trainers.backends import fine_tuning
from trainers.backends.accelerated import refuse_fp32
from trainers.failures import TrainingError
from trainers.run_folder import RunFolder


def ends(run: RunFolder, state: str, *words: str, again: bool = False) -> None:
    """Carry the run out as its process does; it must end in ``state`` without an adapter."""
    code = running._run(run)
    failure = run.failure()
    assert failure is not None
    assert (failure.state, failure.again) == (state, again)
    assert code == (running.EXIT_AGAIN if again else running.EXIT_FAILED)
    for word in words:
        assert word in failure.message
    assert run.result() is None
    assert not run.adapter.exists()


def test_a_loss_that_is_no_number(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = fine_tuning.answer_loss
    monkeypatch.setattr(fine_tuning, "answer_loss", lambda *a: real(*a) * float("nan"))
    ends(tiny_run(tmp_path / "r", tiny_base), "loss_not_finite", "step 1", "learning_rate")


def test_weights_that_are_no_numbers_after_the_last_step(tiny_base: Path, tmp_path: Path) -> None:
    """The loss of that step was one, and without validation nothing else would tell."""
    run = tiny_run(tmp_path / "r", tiny_base, steps=1, weight_decay=1e39, learning_rate=0.9)
    (run.path / "validation.jsonl").write_text("")
    ends(run, "loss_not_finite", "after step 1", "learning_rate")


def test_an_empty_split(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "r", tiny_base)
    (run.path / "train.jsonl").write_text("")
    ends(run, "empty_split", "no call has a usable answer")


def test_examples_longer_than_the_base_models_context(tiny_base: Path, tmp_path: Path) -> None:
    base = copied(tiny_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    ends(tiny_run(tmp_path / "r", base), "examples_too_long", "fits 16 tokens")


def test_a_base_model_without_turn_tokens(tiny_base: Path, tmp_path: Path) -> None:
    base = copied(tiny_base, tmp_path / "base")
    text = (base / "tokenizer.json").read_text().replace("<|im_end|>", "<|other|>")
    (base / "tokenizer.json").write_text(text)
    ends(tiny_run(tmp_path / "r", base), "chat_template_missing", "lacks <|im_end|>")


def test_a_base_model_with_a_broken_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    base = copied(tiny_base, tmp_path / "base")
    (base / "tokenizer.json").write_text("{")
    ends(tiny_run(tmp_path / "r", base), "base_model_unusable", "tokenizer.json cannot be read")


def test_a_base_model_without_the_target_modules(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "r", tiny_base, lora={"targets": ["q_proj", "w1"], "rank": 2})
    ends(run, "target_modules_missing", "no module w1", "gate_proj")


def test_an_optimizer_whose_package_is_missing(tiny_base: Path, tmp_path: Path) -> None:
    if find_spec("bitsandbytes"):
        pytest.skip("it is here")
    run = tiny_run(tmp_path / "r", tiny_base, optimizer="adamw_8bit")
    ends(run, "library_missing", "bitsandbytes", "training.optimizer")


def test_a_precision_that_the_backend_would_not_keep(tiny_base: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be held to fp32") as refused:
        refuse_fp32(tiny_spec(tiny_base, precision="fp32"), bf16=True)
    assert refused.value.state == "spec_invalid"
    refuse_fp32(tiny_spec(tiny_base, precision="fp32"), bf16=False)
    refuse_fp32(tiny_spec(tiny_base, precision="auto"), bf16=True)


def test_a_full_disk_is_tried_again(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainers.backends.watching.seal_checkpoint", full)
    ends(tiny_run(tmp_path / "r", tiny_base), "disk_full", "free space", again=True)


def test_out_of_memory_halves_what_is_computed_at_once_and_goes_on(
    tiny_base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    real = fine_tuning.answer_loss

    def hungry(model: Any, inputs: Any, items: Any = None) -> Any:
        if inputs["input_ids"].shape[0] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return real(model, inputs, items)

    undisturbed = tiny_run(tmp_path / "whole", tiny_base)
    assert running._run(undisturbed) == 0
    monkeypatch.setattr(fine_tuning, "answer_loss", hungry)
    run = tiny_run(tmp_path / "r", tiny_base)
    assert running._run(run) == 0
    result, whole = run.result(), undisturbed.result()
    assert result is not None
    assert whole is not None
    assert (result.steps, result.micro_batch) == (12, 2)
    assert "out of memory: 2 examples at once instead of 4" in result.notes[0]
    # The steps are the same steps: gradients are added up over the halves.
    assert result.loss == pytest.approx(whole.loss, rel=1e-3)


def test_an_example_that_no_memory_holds(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def hungry(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(fine_tuning, "answer_loss", hungry)
    ends(tiny_run(tmp_path / "r", tiny_base), "out_of_memory", "single example")


def copied(base: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(base, target))
