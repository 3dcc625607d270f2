from __future__ import annotations

from bench.support import routing_cost
from bench.support.adapter_mixes import Plan, Spent, measure


def test_every_call_that_is_timed_finds_its_task() -> None:
    result = routing_cost.measure([10, 30], calls=40, rounds=1)
    assert result["calls_of_no_task"] == 0
    assert set(result["microseconds_per_call"]) == {"10", "30"}


def test_a_mix_is_compared_with_its_own_sides_base() -> None:
    plan = Plan(rows=2, tokens=5, mixes=(1, 4), rounds=3)
    sides = {
        "slow": lambda mix: Spent(10.0 + 10 * mix, 8.0 + 8 * mix),
        "fast": lambda mix: Spent(2.0 if mix else 1.0),
    }
    result = measure(sides, plan)
    assert result["slow"]["base only"]["tokens_per_cpu_second"] == 1.0
    assert result["slow"]["1 adapter"]["of_base_only"] == 0.5
    assert result["slow"]["4 adapters"]["decoding_of_base_only"] == 0.2
    assert result["fast"]["4 adapters"] == {"tokens_per_cpu_second": 5.0, "of_base_only": 0.5}
