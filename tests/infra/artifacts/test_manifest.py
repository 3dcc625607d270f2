"""Digests and manifests: stable, canonical, and forward compatible."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.artifacts.manifest import AdapterManifest, adapter_name, digest_files

FILES = {"adapter_config.json": "a" * 64, "adapter_model.safetensors": "b" * 64}


def manifest(**changes: object) -> AdapterManifest:
    digest = digest_files(FILES)
    body = {
        "name": adapter_name("lights", digest),
        "task_id": "lights",
        "digest": digest,
        "files": FILES,
        "base_model": "tiny",
        "base_digest": "c" * 64,
        "spec": {"steps": 3},
        "spec_digest": "d" * 64,
        "dataset_digest": "e" * 64,
        "format": {"template": 1, "drop_tools": True},
        "created": "2026-01-01T00:00:00Z",
    }
    return AdapterManifest.model_validate({**body, **changes})


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@given(st.dictionaries(names, names, max_size=5))
def test_the_digest_ignores_order_and_sees_every_change(files: dict[str, str]) -> None:
    digest = digest_files(files)
    assert digest == digest_files(dict(reversed(list(files.items()))))
    for name in files:
        assert digest != digest_files({**files, name: files[name] + "x"})
        assert digest != digest_files({key: files[key] for key in files if key != name})


def test_unknown_fields_survive_a_round_trip() -> None:
    body = json.loads(manifest(later_field={"a": [1]}).to_json())
    assert json.loads(AdapterManifest.model_validate(body).to_json())["later_field"] == {"a": [1]}


def test_the_json_is_canonical() -> None:
    first = manifest()
    again = AdapterManifest.model_validate_json(first.to_json())
    assert again.to_json() == first.to_json()
    assert list(json.loads(first.to_json())) == sorted(json.loads(first.to_json()))


def test_metrics_and_threshold_do_not_change_the_name() -> None:
    assert manifest(threshold=-0.1, metrics={"loss": 1}).name == manifest().name


@pytest.mark.parametrize("task", ["", "Ümlaut", "../up", "-dash", "a" * 42, "with space"])
def test_task_ids_that_could_leave_their_folder_are_refused(task: str) -> None:
    with pytest.raises(ValidationError):
        manifest(task_id=task, name=adapter_name(task, digest_files(FILES)))
