from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from infra.settings.operating import Rollout as RolloutSettings
from serving.rollout.policy import RolloutPolicy


def test_the_settings_are_taken_over_and_survive_json() -> None:
    settings = RolloutSettings(
        steps=(0.2, 0.6), margin=0.07, cooldown_seconds=11, shadow_sessions=0
    )
    policy = RolloutPolicy.from_settings(settings)
    assert (policy.steps, policy.margin, policy.cooldown_seconds) == ((0.2, 0.6), 0.07, 11)
    assert policy.shadow_sessions == 0
    assert RolloutPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert RolloutPolicy.from_settings(settings, when_open="supersede").when_open == "supersede"


def test_every_term_has_a_setting_with_the_same_default() -> None:
    defaults = RolloutSettings()
    for field in fields(RolloutPolicy):
        assert getattr(defaults, field.name) == field.default, field.name


def test_terms_that_a_newer_release_stored_are_passed_over() -> None:
    stored = {**RolloutPolicy().to_json(), "from_the_future": 1}
    assert RolloutPolicy.from_json(stored) == RolloutPolicy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": ()}, "at least one canary step"),
        ({"steps": (0.5, 0.1)}, "rise strictly"),
        ({"steps": (0.1, 0.1)}, "rise strictly"),
        ({"steps": (0.0, 0.1)}, "shares above 0"),
        ({"steps": (0.5, 1.5)}, "shares above 0"),
        ({"step_sessions": 0}, "at least 1"),
        ({"max_sessions": 5}, "only end inconclusive"),
        ({"shadow_deadline_seconds": 0}, "deadline above 0"),
        ({"cooldown_seconds": -1}, "0 or more"),
        ({"when_open": "both"}, "supersede"),
    ],
)
def test_terms_that_contradict_each_other_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RolloutPolicy(), **changes)
