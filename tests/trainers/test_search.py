"""Which candidates are tried, for how long, and who goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.artifacts.folder import digest_folder
from tests.tiny_run import tiny_run, tiny_spec
from trainers.run import train
from trainers.run_folder import RunFolder
from trainers.search import candidates, data_verdict, rungs, share_of_steps, survivors


def test_variations_keep_the_scale_and_the_limit(tiny_base: Path) -> None:
    spec = tiny_spec(tiny_base)
    found = candidates(spec, (4, 8), (0.01, 0.002), 10)
    assert found[0] == spec
    assert {(s.lora.rank, s.learning_rate) for s in found} == {
        (4, 0.01),
        (4, 0.002),
        (8, 0.01),
        (8, 0.002),
    }
    assert all(s.lora.alpha / s.lora.rank == 2 for s in found)
    assert candidates(spec, (4, 8), (0.01, 0.002), 2) == found[:2]
    assert candidates(spec, (), (), 5) == [spec]
    # Who names another base wants it to compete, however few may.
    others = candidates(spec, (4, 8), (), 1, [("other", "e" * 64)])
    assert [s.base_model for s in others] == ["tiny", "other"]


@pytest.mark.parametrize(
    ("count", "steps", "expected", "cost"),
    [
        (1, 100, [], 1.0),
        (2, 100, [50], 1.5),
        (4, 100, [25, 50], 2.0),
        (5, 80, [10, 20, 40], 2.0),
        (4, 1, [], 1.0),
    ],
)
def test_rungs_and_what_they_cost(count: int, steps: int, expected: list[int], cost: float) -> None:
    assert rungs(count, steps) == expected
    assert share_of_steps(count, steps) == pytest.approx(cost)


def test_the_better_half_goes_on_and_a_failed_one_never() -> None:
    assert survivors({"a": 1.0, "b": 0.5, "c": None, "d": 2.0}) == ["b", "a"]
    assert survivors({"a": 1.0, "b": float("nan"), "c": 0.9}, final=True) == ["c"]
    assert survivors({"a": 1.0, "b": 0.5, "c": 2.0}) == ["b", "a"], "half of three, rounded up"
    assert survivors({"a": None}) == []


def test_a_paused_run_gone_on_with_ends_like_one_never_paused(
    tiny_base: Path, tmp_path: Path
) -> None:
    whole = tiny_run(tmp_path / "whole", tiny_base, steps=16)
    train(whole)
    run = tiny_run(tmp_path / "run", tiny_base, steps=16, request={"pause_step": 8})
    paused = train(run)
    assert (paused.stopped, paused.steps) == ("paused", 8)
    assert paused.validation_loss is not None
    assert train(run) == paused, "it stays paused until it is asked to go on"
    again = tiny_run(tmp_path / "run", tiny_base, steps=16)
    assert again.result() is None
    assert train(again).stopped is None
    assert digest_folder(RunFolder(run.path).adapter) == digest_folder(whole.adapter)


def test_two_points_of_a_learning_curve_say_whether_more_data_would_help() -> None:
    assert data_verdict({0.1: 1.0, 0.3: 0.8}) == (
        "more data would help (validation loss 1.000 on 10 % of the examples, 0.800 on 30 %)"
    )
    # 1 - 2 ** -b with b = ln(1.0 / 0.98) / ln 3 is 1.3 %.
    assert "would not help" in str(data_verdict({0.1: 1.0, 0.3: 0.98}))
    assert "would not help" in str(data_verdict({0.1: 1.0, 0.3: 1.2}))
    assert data_verdict({0.1: None, 0.3: 1.0}) is None


def test_the_best_on_a_base_that_is_served_goes_on_beside_those_that_are_not() -> None:
    losses = {"a": 0.1, "b": 0.2, "c": 0.3, "d": None}
    assert survivors(losses, served={"c", "d"}) == ["a", "b", "c"]
    assert survivors(losses, final=True, served={"b", "c"}) == ["a", "b"]
    assert survivors(losses, served={"d"}) == ["a", "b"], "what failed does not"
    assert survivors(losses, served={"a"}) == ["a", "b"]
