"""What bench/drift.py plants is what it says, and a level is tuned as it says."""

from __future__ import annotations

from bench.drift import LEVELS, per_hundred, tuned_level
from bench.support.drifting import NEW_QUEUE, NEW_TOOL, SHARE, planted, stationary, take


def share(rows: list[dict[str, object]], wanted: object) -> float:
    return sum(bool(wanted(row)) for row in rows) / len(rows)  # type: ignore[operator]


def test_a_planted_drift_is_in_what_comes_after_and_not_in_what_was_before():
    kinds = {
        ("home", "new tool"): lambda row: row["action"] == NEW_TOOL,
        ("triage", "new label"): lambda row: row["label"] == NEW_QUEUE,
        ("home", "new language"): lambda row: row["prompt_language"] == "de",
        ("triage", "new template"): lambda row: row["prompt"].startswith("Request from the web"),
    }
    for (name, drift), new in kinds.items():
        stream = planted(name, drift, 3)
        before, after = take(stream.before, 200), take(stream.after, 300)
        assert share(before, new) <= 0.01, drift
        assert 0.03 < share(after, new) < 2 * SHARE, drift
    mixed = planted("home", "shifted mix", 3)
    common = {"HassTurnOn", "HassLightSet"}
    shares = [
        share(take(s, 400), lambda row: row["action"] in common)
        for s in (mixed.before, mixed.after)
    ]
    assert shares[1] > shares[0] + 0.05


def test_the_two_parts_of_a_stream_are_not_the_same_and_each_comes_again():
    tuned, again, measured = (
        [row["prompt"] for row in take(stationary("home", part, 3), 100)]
        for part in ("tuned", "tuned", "measured")
    )
    assert tuned == again != measured


def test_the_largest_level_is_taken_that_gives_at_most_one_false_alarm_in_a_hundred_days():
    counts = dict(zip(map(str, LEVELS), (4, 3, 1, 0), strict=True))
    found = {"home": {"days": 200, "alarms": counts}, "chat": {"days": 100, "alarms": counts}}
    assert per_hundred(found, LEVELS[2]) == 100 * 2 / 300
    assert tuned_level(found) == LEVELS[2]
    assert tuned_level({"home": {"days": 10, "alarms": dict.fromkeys(counts, 9)}}) == min(LEVELS)
