"""The official JavaScript client, as it is installed by its lock file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.gateway.clients.conftest import TASK, Served
from tests.serving.gateway.clients.expected import ERRORS, expected

HERE = Path(__file__).parent
VAR = HERE.parents[3] / "var"


@pytest.fixture(scope="session")
def script() -> Path:
    """The scenarios beside the installed client, in a folder that the next run finds again."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    files = ("package.json", "package-lock.json", "scenarios.mjs")
    digest = hashlib.sha256((HERE / files[1]).read_bytes()).hexdigest()[:12]
    folder = VAR / f"javascript-client-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copy(HERE / name, folder / name)
    if not (folder / "node_modules" / "openai" / "package.json").exists():
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    return folder / "scenarios.mjs"


async def test_the_official_javascript_client(served: Served, script: Path) -> None:
    arguments = [served.url, served.key, served.spent, TASK]
    process = await asyncio.create_subprocess_exec(
        "node",
        str(script),
        *arguments,
        cwd=script.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problems = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, problems.decode()
    found = json.loads(out)
    errors = found.pop("errors")
    assert found == expected(served.adapter)
    assert errors.pop("slow")["kind"] == "APIConnectionTimeoutError"
    # A stream that the caller leaves is left at the teacher too.
    await asyncio.wait_for(served.teacher.gone.wait(), 20)
    assert {name: tuple(error.values()) for name, error in errors.items()} == ERRORS
