"""The arm of a session: uniform, sticky, nested, and independent between rollouts."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from serving.rollout.assignment import arm, bucket, new_salt

SESSIONS = [f"session-{number}" for number in range(100_000)]
shares = st.floats(0, 1)


@given(st.text(), st.text())
def test_a_bucket_lies_in_zero_to_one_and_never_changes(salt: str, session: str) -> None:
    place = bucket(salt, session)
    assert 0 <= place < 1
    assert bucket(salt, session) == place


@given(st.text(), st.text(), shares, shares)
def test_raising_the_weight_never_moves_a_canary_session_back(
    salt: str, session: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if arm(salt, session, low) == "canary":
        assert arm(salt, session, high) == "canary"


@given(st.text(), st.text())
def test_weight_nothing_exposes_nobody_and_weight_one_everybody(salt: str, session: str) -> None:
    assert arm(salt, session, 0) == "champion"
    assert arm(salt, session, 1) == "canary"


def test_the_split_is_within_half_a_point_of_the_weight() -> None:
    for weight in (0.1, 0.25, 0.5):
        share = sum(arm("a-salt", session, weight) == "canary" for session in SESSIONS)
        assert abs(share / len(SESSIONS) - weight) < 0.005, weight


def test_weight_steps_do_not_drift_to_a_full_canary() -> None:
    # Sticky sessions that only ever join let the canary's share creep up under a fixed weight.
    exposed = {session for session in SESSIONS if arm("salt", session, 0.1) == "canary"}
    for _ in range(3):
        exposed |= {session for session in SESSIONS if arm("salt", session, 0.1) == "canary"}
    assert abs(len(exposed) / len(SESSIONS) - 0.1) < 0.005


def test_another_salt_deals_the_sessions_anew() -> None:
    first = {session for session in SESSIONS if arm("one", session, 0.1) == "canary"}
    second = {session for session in SESSIONS if arm("two", session, 0.1) == "canary"}
    # Independent arms share a tenth of a tenth.
    assert abs(len(first & second) / len(SESSIONS) - 0.01) < 0.003
    assert len({new_salt() for _ in range(100)}) == 100


def test_salt_and_session_do_not_run_into_each_other() -> None:
    assert bucket("ab", "c") != bucket("a", "bc")


def test_another_process_finds_the_same_bucket() -> None:
    code = "from serving.rollout.assignment import bucket; print(repr(bucket('salt', 'sé-1')))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert float(printed) == bucket("salt", "sé-1")
