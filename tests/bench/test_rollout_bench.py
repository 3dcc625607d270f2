from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.support.rollout_rules import INTERVAL, NEVER, RULES, Seen, Setting

ROOT = Path(__file__).parents[2]
SETTING = Setting(margin=0.05, alpha=0.05, base_rate=0.9)


def seen(canary: float, champion: float, looks: int = 100) -> Seen:
    """Five canary and fifty champion labels a look, right at exactly these rates."""
    at = np.arange(1, looks + 1, dtype=float)[None, :]
    return Seen(5 * at, 5 * at * canary, 50 * at, 50 * at * champion)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_rolls_back_a_broken_canary_and_no_flawless_one(name):
    bad, good = RULES[name](seen(0.2, 0.9), SETTING)
    assert bad[0] < 60 and (good[0] == NEVER or good[0] > bad[0])
    bad, good = RULES[name](seen(0.95, 0.9), SETTING)
    assert bad[0] == NEVER


def test_rules_of_intervals_decide_at_their_ends():
    bad, _ = RULES["argo"](seen(0.2, 0.9), SETTING)
    assert bad[0] == 3 * INTERVAL - 1  # the third failed interval is one more than is allowed
    bad, _ = RULES["flagger"](seen(0.2, 0.9), SETTING)
    assert bad[0] == 5 * INTERVAL - 1


def test_no_values_fail_a_check_of_flagger_and_none_of_argo():
    nothing = Seen(*(np.zeros((1, 100)) for _ in range(4)))
    assert RULES["flagger"](nothing, SETTING)[0][0] != NEVER
    assert RULES["argo"](nothing, SETTING)[0][0] == NEVER


def test_the_bench_runs_the_same_streams_through_every_rule(tmp_path):
    out = tmp_path / "rollout.json"
    command = [sys.executable, str(ROOT / "bench/rollout.py"), "--quick", "--runs", "40"]
    subprocess.run(
        [*command, "--processes", "1", "--json", str(out)],
        check=True,
        capture_output=True,
        timeout=240,
    )
    found = json.loads(out.read_text())
    assert set(found["summary"]) == {"nightschool", *RULES}
    ours = found["summary"].pop("nightschool")
    assert ours["power"]["0.2"]["bad"] >= 0.95
    # 40 runs in the worst of 8 cells, at a chance of at most 0.0275 and 0.05 each.
    assert ours["false_rollback"]["share"] <= 0.2 and ours["false_promotion"]["share"] <= 0.25
    failing = [
        name
        for name, rule in found["summary"].items()
        if rule["false_rollback"]["share"] > 0.2 or rule["false_promotion"]["share"] > 0.25
    ]
    assert {"argo", "flagger", "growthbook"} <= set(failing)
