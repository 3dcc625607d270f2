"""One run in its own process: it learns, survives being killed, stops when asked, fails clearly."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import digest_folder
from tests.tiny_run import checkpoint_sealed, tiny_run, train_to_end, training_process, wait_until
from trainers.failures import TrainingError
from trainers.run import open_backend, train
from trainers.run_folder import RunFolder, read_tail


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of 40 steps that nobody disturbed."""
    run = tiny_run(tmp_path_factory.mktemp("runs") / "finished", tiny_base, steps=40)
    train(run)
    return run


def test_it_learns_and_reports_every_step(finished: RunFolder) -> None:
    events = [event for event in read_tail(finished.events_file) if event.get("tokens")]
    assert [event["step"] for event in events] == list(range(1, 41))
    assert all(event["steps"] == 40 and event["seconds"] > 0 for event in events)
    first, last = events[0]["loss"], events[-1]["loss"]
    assert last < first - 1
    result = finished.result()
    assert result is not None
    assert result.steps == 40
    assert result.validation_loss is not None
    assert result.validation_loss < first - 1
    assert result.stopped is None
    assert finished.progress().step == 40
    assert finished.progress().seconds_left == 0


def test_it_keeps_the_step_with_the_lowest_validation_loss(finished: RunFolder) -> None:
    checks = {
        event["step"]: event["validation_loss"]
        for event in read_tail(finished.events_file)
        if event.get("validation_loss") is not None
    }
    assert set(checks) == {*range(4, 41, 4)}
    result = finished.result()
    assert result is not None
    assert result.kept_step == min(checks, key=lambda step: checks[step])
    assert result.validation_loss == min(checks.values())


def test_a_killed_run_resumes_to_the_very_same_adapter(
    finished: RunFolder, tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "killed", tiny_base, steps=40)
    with training_process(run) as process:
        wait_until(lambda: checkpoint_sealed(run) or process.poll() is not None)
        process.kill()
        process.wait()
    assert run.result() is None, "it was to be killed before its end"
    # What a kill in the middle of writing leaves behind: newer, and not whole.
    half = run.checkpoints / "checkpoint-36"
    half.mkdir(exist_ok=True)
    (half / "sealed").unlink(missing_ok=True)
    (half / "optimizer.pt").write_bytes(b"half")
    steps_before = len(read_tail(run.events_file))

    assert train_to_end(run) == 0, run.log_file.read_text()
    again = [
        event["step"] for event in read_tail(run.events_file)[steps_before:] if event.get("tokens")
    ]
    assert again[0] > 1, "it began anew instead of resuming"
    assert again == list(range(again[0], 41))
    assert digest_folder(run.adapter) == digest_folder(finished.adapter)


def test_the_same_spec_and_seed_give_the_same_digest_and_another_seed_another(
    finished: RunFolder, tiny_base: Path, tmp_path: Path
) -> None:
    again = tiny_run(tmp_path / "again", tiny_base, steps=40)
    train(again)
    assert digest_folder(again.adapter) == digest_folder(finished.adapter)
    other = tiny_run(tmp_path / "other", tiny_base, steps=40, seed=8)
    train(other)
    assert digest_folder(other.adapter)[0] != digest_folder(finished.adapter)[0]


def test_without_a_better_loss_for_long_enough_a_run_ends_early(
    tiny_base: Path, tmp_path: Path
) -> None:
    # A rate this high finds its best early and never again.
    high = {"learning_rate": 0.5, "schedule": "constant", "steps": 80, "checkpoint_steps": 2}
    run = tiny_run(tmp_path / "patient", tiny_base, patience=3, **high)
    train(run)
    checks = {
        event["step"]: event["validation_loss"]
        for event in read_tail(run.events_file)
        if event.get("validation_loss") is not None
    }
    result = run.result()
    assert result is not None
    assert result.stopped == "converged"
    assert result.kept_step == min(checks, key=lambda step: checks[step])
    assert result.steps == result.kept_step + 3 * 2 < 80


def test_training_again_what_is_trained_does_nothing(finished: RunFolder) -> None:
    before = finished.result_file.stat().st_mtime_ns, len(read_tail(finished.events_file))
    assert train(finished) == finished.result()
    assert (finished.result_file.stat().st_mtime_ns, len(read_tail(finished.events_file))) == before


def test_a_run_past_its_deadline_stops_cleanly_and_keeps_what_it_has(
    tiny_base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "late", tiny_base, steps=5000, request={"deadline": time.time() - 1})
    train(run)
    result = run.result()
    assert result is not None
    assert (result.stopped, result.steps) == ("deadline", 1)
    digest_folder(run.adapter)


def test_a_run_that_is_asked_to_stop_keeps_the_best_so_far(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "asked", tiny_base, steps=100_000)
    with training_process(run) as process:
        wait_until(lambda: run.progress().validation_loss is not None)
        run.request_stop()
        assert process.wait(120) == 0
    result = run.result()
    assert result is not None
    assert result.stopped == "asked"
    assert result.kept_step <= result.steps < 100_000
    assert result.kept_step % 4 == 0
    assert result.validation_loss is not None


def test_only_the_last_layers_when_asked(tiny_base: Path, tmp_path: Path) -> None:
    from infra.artifacts.weights import read_header

    run = tiny_run(
        tmp_path / "last",
        tiny_base,
        steps=2,
        lora={"rank": 2, "last_layers": 1},
        shuffle_answers=True,
    )
    train(run)
    names = read_header(run.adapter / "adapter_model.safetensors")
    assert names
    assert all(".layers.1." in name for name in names)
    assert json.loads((run.adapter / "adapter_config.json").read_text())["layers_to_transform"] == [
        1
    ]


def test_another_base_model_than_the_specs_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "other", tiny_base, base_digest="0" * 64)
    with pytest.raises(TrainingError, match="the spec asks for 000000000000"):
        train(run)
    assert read_base_shape(tiny_base).digest != "0" * 64


def test_examples_that_all_are_too_long_are_named(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "long", tiny_base, max_sequence_tokens=16)
    with pytest.raises(TrainingError, match="none of 40 training examples fits 16 tokens"):
        train(run)


def test_a_run_that_must_have_a_gpu_fails_without_one() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match="no GPU"):
        open_backend("auto", allow_cpu=False)
    assert open_backend("auto").name == "peft"
