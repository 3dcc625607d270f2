"""Where the base model's files are, or what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.artifacts.base_folder import PACKAGED_SHA256, converted_folder, local_base_folder
from infra.artifacts.manifest import ArtifactError
from infra.settings.serving import Engine


def test_a_folder_is_itself_and_a_packaged_model_is_where_it_was_converted(tmp_path: Path) -> None:
    assert local_base_folder(Engine(base_model=str(tmp_path))) == tmp_path
    (name, sha256), *_ = PACKAGED_SHA256.items()
    converted = converted_folder(tmp_path, name, sha256)
    converted.mkdir()
    assert local_base_folder(Engine(base_model=name, models=tmp_path)) == converted


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("smollm2-135m", "set engine.models"),
        ("nobody/has-this-model", "set engine.base_model to a folder"),
        ("/no/such/folder", "set engine.base_model to a folder"),
    ],
)
def test_what_is_not_here_is_said_with_what_to_do(tmp_path: Path, name: str, advice: str) -> None:
    with pytest.raises(ArtifactError, match=advice):
        local_base_folder(Engine(base_model=name, models=tmp_path / "none"))
