"""A command knows of nothing but what its test gives it."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Prefect server that other tests of the session have started."""
    for name in [name for name in os.environ if name.startswith(("NIGHTSCHOOL_", "PREFECT_"))]:
        monkeypatch.delenv(name)
