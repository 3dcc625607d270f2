from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.engines.building import make_adapter
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Three adapters that differ in rank, scale, targets and layers."""
    parent = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(base, parent, task="lights", seed=1, rank=8, alpha=16),
        make_adapter(
            base, parent, task="music", seed=2, rank=4, alpha=4, targets=("q_proj", "k_proj")
        ),
        make_adapter(base, parent, task="timer", seed=3, rank=16, alpha=24, layers=[1]),
    ]
