"""Two stacks in one folder: the second is refused, and the lock of a killed one is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.stack.processes import StackError
from flows.stack.up import only_one

HOLDER = """
import sys, signal
from pathlib import Path
from flows.stack.up import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_the_second_up_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "var" / "up.lock"
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        for _ in range(2):
            with (
                pytest.raises(StackError, match=f"runs here already .process {first.pid}, "),
                only_one(lock),
            ):
                raise AssertionError("both hold it")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with only_one(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_the_command_says_so_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from flows.cli.run import up

    monkeypatch.chdir(tmp_path)
    with only_one():
        result = CliRunner().invoke(up, obj={})
    assert result.exit_code != 0
    assert "runs here already" in result.output
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["up.lock", "var"]
