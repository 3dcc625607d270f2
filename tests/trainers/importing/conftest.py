"""A store and a database, and a folder of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainers.recorded import opened


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return opened(tmp_path)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder
