from __future__ import annotations

import os
import socket

import pytest

from flows.demo.script import MARKER, play_demo
from flows.demo.summary import rendered, succeeded

ROLLOUTS = [
    {"adapter": "a@1", "state": "promoted", "sessions": 90, "reason": "as good"},
    {"adapter": "a@2", "state": "rolled_back", "sessions": 9, "reason": "worse"},
]


@pytest.mark.parametrize(
    ("rollouts", "bad", "expected"),
    [
        (ROLLOUTS, "a@2", True),
        (ROLLOUTS[:1], "a@2", False),
        (ROLLOUTS[1:], "a@2", False),
        ([{**ROLLOUTS[0], "adapter": "a@2"}, ROLLOUTS[1]], "a@2", False),
        (ROLLOUTS, None, False),
        ([ROLLOUTS[0], {**ROLLOUTS[1], "sessions": 0}], "a@2", False),
    ],
)
def test_success_is_a_promotion_and_the_bad_ones_rollback(rollouts, bad, expected):
    assert succeeded({"rollouts": rollouts}, bad) is expected


def test_a_folder_that_is_not_the_demos_is_never_emptied(tmp_path, capsys):
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    assert play_demo(tmp_path, 8300, 1, keep_running=False) == 1
    assert precious.read_text() == "years of work"
    assert "name another --folder" in capsys.readouterr().err


@pytest.fixture
def own_environment():
    """The demo changes the variables of its process, which here is that of all tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_busy_port_is_one_clear_line_before_anything_starts(tmp_path, capsys, own_environment):
    folder = tmp_path / "demo"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert play_demo(folder, min(port, 65500), 1, keep_running=False) == 1
    error = capsys.readouterr().err
    assert f"port {min(port, 65500)} (gateway) is in use" in error
    assert (folder / MARKER).exists()


def test_the_summary_on_the_screen_says_what_the_file_says():
    summary = {
        "calls": {"captured": 10, "ingested": 10, "quarantined": 0, "lost": 0},
        "personal_data": {"EMAIL": 3},
        "tasks": [{"id": "lights", "name": "Lights", "size": 9, "purity": 1.0}],
        "adapters": [
            {
                "adapter": "a@1",
                "task": "lights",
                "base_score": 0.0,
                "adapter_score": 0.9,
                "teacher_score": 1.0,
                "coverage": 0.8,
                "served_score": 0.98,
                "gate": "pass",
            }
        ],
        "rollouts": ROLLOUTS,
        "small_model_share": 0.4,
        "small_model_agreement": None,
        "served_agreement": 0.99,
        "stage_seconds": {"night": 200.0},
        "links": {"prefect": "http://127.0.0.1:8304"},
    }
    text = "\n".join(rendered(summary))
    for part in ("10 captured", "3 EMAIL", "purity 100 %", "rolled_back after 9", "served 98 %"):
        assert part in text
