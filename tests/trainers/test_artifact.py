"""From a trained run to object storage and back into PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import pull, verify_folder
from infra.artifacts.manifest import CARD, CONFIG, MANIFEST, WEIGHTS, ArtifactError
from infra.objects.store import ObjectStore
from tests.tiny_run import tiny_run
from trainers.artifact import package, publish
from trainers.run import train
from trainers.run_folder import RunFolder


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = tiny_run(tmp_path_factory.mktemp("runs") / "trained", tiny_base, steps=8)
    train(run)
    return run


def test_a_packaged_run_says_what_it_is(trained: RunFolder, tiny_base: Path) -> None:
    packaged = package(trained.path)
    manifest, spec = packaged.manifest, trained.spec()
    assert packaged.name == f"lights@{packaged.digest[:16]}"
    assert verify_folder(packaged.folder, read_base_shape(tiny_base), max_rank=4) == manifest
    assert manifest.spec_digest == spec.digest
    assert manifest.format == spec.format
    assert manifest.dataset_digest == spec.dataset_digest
    assert {"torch", "peft", "trl"} <= set(manifest.libraries)
    assert manifest.metrics["training"]["steps"] == 8
    assert packaged.name in (packaged.folder / CARD).read_text()


def test_packaging_again_changes_nothing(trained: RunFolder) -> None:
    first = package(trained.path)
    before = (first.folder / MANIFEST).read_bytes()
    assert package(trained.path) == first
    assert (first.folder / MANIFEST).read_bytes() == before


def test_peft_loads_it_to_the_weights_that_were_trained(
    trained: RunFolder, tiny_base: Path
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    packaged = package(trained.path)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), str(packaged.folder)
    )
    state = model.state_dict()
    for name, tensor in load_file(packaged.folder / WEIGHTS).items():
        loaded = state[
            name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        ]
        assert torch.equal(loaded.float(), tensor)
    assert model.peft_config["default"].lora_alpha / model.peft_config["default"].r == 2


def test_publishing_twice_keeps_the_first(
    trained: RunFolder, store: ObjectStore, tmp_path: Path, tiny_base: Path
) -> None:
    packaged = package(trained.path)
    first = publish(store, packaged.folder, threshold=-0.25, metrics={"judged": {"exact": 0.9}})
    assert first.location == f"adapters/lights/{packaged.digest}"
    assert first.manifest.threshold == -0.25
    again = publish(store, packaged.folder, threshold=-0.5)
    assert again == first
    pulled = pull(store, first.location, tmp_path / "cache")
    manifest = verify_folder(pulled, read_base_shape(tiny_base))
    assert manifest == first.manifest
    assert manifest.metrics["judged"] == {"exact": 0.9}
    assert manifest.metrics["training"]["steps"] == 8


def test_an_upload_cut_off_before_the_manifest_is_completed_by_repeating_it(
    trained: RunFolder, store: ObjectStore, tmp_path: Path
) -> None:
    packaged = package(trained.path)
    location = f"adapters/lights/{packaged.digest}"
    store.put(f"{location}/{WEIGHTS}", (packaged.folder / WEIGHTS).read_bytes())
    with pytest.raises(ArtifactError, match="no adapter at"):
        pull(store, location, tmp_path / "cache")
    publish(store, packaged.folder)
    assert pull(store, location, tmp_path / "cache").name == packaged.name


def test_other_bytes_under_the_same_name_are_an_alarm(
    trained: RunFolder, store: ObjectStore
) -> None:
    packaged = package(trained.path)
    store.put(f"adapters/lights/{packaged.digest}/{WEIGHTS}", b"something else")
    with pytest.raises(ArtifactError, match="tampered"):
        publish(store, packaged.folder)


def test_what_was_changed_since_it_was_packaged_is_not_published(
    trained: RunFolder, store: ObjectStore, tmp_path: Path
) -> None:
    folder = shutil.copytree(package(trained.path).folder, tmp_path / "changed")
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError):
        publish(store, folder)
    assert not list(store.list("adapters/"))


def test_an_adapter_that_does_not_fit_its_base_is_never_seen_packaged(
    trained: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    shutil.rmtree(run.path / "packaged", ignore_errors=True)
    config = json.loads((run.adapter / CONFIG).read_text())
    (run.adapter / CONFIG).write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(ArtifactError):
        package(run.path)
    assert not list((run.path / "packaged").iterdir())


def test_a_run_without_a_result_cannot_be_packaged(tiny_base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "fresh", tiny_base)
    with pytest.raises(ArtifactError, match="has no result"):
        package(run.path)


def test_its_card_shows_the_training_curve_and_the_picture_is_verified(
    trained: RunFolder, store: ObjectStore
) -> None:
    from xml.etree import ElementTree

    from infra.artifacts.manifest import CURVE

    packaged = package(trained.path)
    assert f"![training curve]({CURVE})" in (packaged.folder / CARD).read_text()
    picture = packaged.folder / CURVE
    lines = ElementTree.fromstring(picture.read_text()).findall("{*}polyline")
    # One point a step of training, one a validation: steps 4 and 8.
    assert [len(line.attrib["points"].split()) for line in lines] == [8, 2]
    location = publish(store, packaged.folder).location
    assert store.get(f"{location}/{CURVE}") == picture.read_bytes()
    text = picture.read_text()
    picture.write_text(text.replace("loss", "fun"))
    with pytest.raises(ArtifactError, match=f"{CURVE} of .* is corrupt"):
        verify_folder(packaged.folder)
    picture.write_text(text)


def test_rslora_is_written_as_the_plain_lora_that_computes_the_same(
    tiny_base: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run = tiny_run(
        tmp_path / "rs", tiny_base, steps=4, lora={"rank": 4, "alpha": 8, "rslora": True}
    )
    train(run)
    packaged = package(run.path)
    ids = torch.arange(3, 40).unsqueeze(0)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), str(packaged.folder)
    )
    targets = list(run.spec().lora.targets)
    scaled = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base),
        LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=targets),
    ).eval()
    set_peft_model_state_dict(scaled, load_file(packaged.folder / WEIGHTS))
    with torch.no_grad():
        ours, theirs = plain(ids).logits, scaled(ids).logits
        bare = AutoModelForCausalLM.from_pretrained(tiny_base)(ids).logits
    torch.testing.assert_close(ours, theirs)
    assert (ours - bare).abs().max() > 1e-3


def test_dora_is_refused_before_anything_is_trained(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no engine here could serve it"):
        tiny_run(tmp_path / "dora", tiny_base, lora={"rank": 2, "dora": True})
