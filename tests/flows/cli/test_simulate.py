"""``nightschool rollouts simulate`` as a person and a script meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evaluators.metrics import EvidencePolicy
from flows.cli import main
from serving.rollout.policy import RolloutPolicy


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["rollouts", "simulate", "--runs", "60", *arguments])


def test_a_table_for_people_and_json_for_scripts():
    said = simulate("--margin", "0.1", "--harm", "0", "--harm", "0.3")
    assert said.exit_code == 0 and "rolled_back" in said.stdout and "false rollback" in said.stdout
    found = json.loads(simulate("--harm", "0", "--harm", "0.3", "--json").stdout)
    assert [row["harm"] for row in found["rows"]] == [0.0, 0.3]
    assert found["rows"][1]["rolled_back"] > 0.9 > 0.1 > found["rows"][0]["rolled_back"]
    assert found["terms"]["steps"] == [0.1, 0.25, 0.5]  # from the settings
    again = json.loads(simulate("--harm", "0", "--harm", "0.3", "--json").stdout)
    assert again == found


def test_settings_give_the_defaults_and_options_win(tmp_path: Path):
    (tmp_path / "nightschool.toml").write_text("[rollout]\nmargin = 0.2\nmax_sessions = 300\n")
    terms = json.loads(simulate("--harm", "0", "--json").stdout)["terms"]
    assert (terms["margin"], terms["rollback_margin"], terms["max_sessions"]) == (0.2, 0.01, 300)
    given = ("--margin", "0.05", "--rollback-margin", "0.01", "--step", "0.3")
    terms = json.loads(simulate("--harm", "0", "--json", *given).stdout)["terms"]
    assert (terms["margin"], terms["rollback_margin"], terms["steps"]) == (0.05, 0.01, [0.3])


def test_late_labels_count_as_missing_and_verdicts_wait_for_the_horizon():
    late = ("--label-delay-hours", "2", "--maturity-hours", "4", "--late", "right")
    found = json.loads(simulate("--harm", "0.3", "--json", *late).stdout)
    assert found["traffic"]["missing_right"] == pytest.approx(0.1353, abs=1e-3)
    assert found["traffic"]["missing_wrong"] == 0
    assert found["rows"][0]["hours"] is None or found["rows"][0]["hours"] > 4


def test_a_judge_that_forgives_costs_power_and_is_taken_from_the_settings(tmp_path: Path):
    def found(*given: str) -> tuple[float, float]:
        given = ("--harm", "0.3", "--step", "0.3", "--max-sessions", "100", "--json", *given)
        body = json.loads(simulate(*given).stdout)
        return body["traffic"]["forgiven"], body["rows"][0]["rolled_back"]

    assert found()[0] == 0 and found()[1] > 0.9
    (tmp_path / "nightschool.toml").write_text('[judge]\nmodel = "large"\nrollout_share = 0.5\n')
    assert found()[0] == pytest.approx(0.1)
    share, power = found("--judge-share", "1", "--judge-forgives", "0.6")
    assert share == pytest.approx(0.6) and power < 0.2


def test_a_policy_that_cannot_be_met_is_said_to_be():
    said = simulate("--harm", "0", "--missing", "0.4")
    assert said.exit_code == 0 and "with this traffic: a promotion can never" in said.stdout
    assert "would be refused" not in said.stdout, "an opening knows nothing of the traffic"
    given = {"margin": 0.01, "max_sessions": 100}
    opening = RolloutPolicy(**given).unreachable()
    said = simulate("--harm", "0", "--margin", "0.01", "--max-sessions", "100")
    assert opening is not None and f"a rollout would be refused: {opening}" in said.stdout


def test_the_level_is_that_of_all_metrics_beside_this_champion():
    def level(*given: str) -> float:
        return json.loads(simulate("--harm", "0", "--json", *given).stdout)["terms"]["alpha_bad"]

    policy = EvidencePolicy(latency_objective_seconds=5)
    assert level() == pytest.approx(policy.quality_level(champion_is_teacher=False))
    assert level("--champion", "teacher") == pytest.approx(policy.quality_level(True))


def test_a_picture_is_written_and_a_place_that_is_not_there_is_named(tmp_path: Path):
    pytest.importorskip("plotly")
    assert simulate("--harm", "0", "--picture", "trial.html").exit_code == 0
    assert (tmp_path / "trial.html").stat().st_size > 10_000
    nowhere = simulate("--harm", "0", "--picture", "missing/trial.html")
    assert nowhere.exit_code == 1 and "missing" in nowhere.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--step", "1"),
        ("--step", "0"),
        ("--margin", "1"),
        ("--base-rate", "0.05", "--harm", "0.1"),
        ("--champion", "teacher", "--harm", "-0.1"),
    ],
)
def test_shares_and_margins_that_cannot_be_are_refused(wrong):
    said = simulate("--harm", "0", *wrong)
    assert said.exit_code == 2 and said.stderr.startswith("nightschool: ")
