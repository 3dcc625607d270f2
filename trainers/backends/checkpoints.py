"""What survives a killed run: whole checkpoints, and the best weights so far.

A checkpoint counts once it is sealed, that is when every file of it has reached the disk; a folder
without the seal is what a killed process was writing, and is removed.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from infra.artifacts.manifest import CONFIG, WEIGHTS
from infra.files import write_atomically
from trainers.failures import TrainingError
from trainers.spec import TrainSpec

_SEAL = "sealed"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def seal_checkpoint(folder: Path) -> None:
    """Flush every file of the checkpoint, then mark it as whole."""
    for path in folder.iterdir():
        if path.is_file():
            _flush(path)
    (folder / _SEAL).touch()


def last_checkpoint(checkpoints: Path) -> str | None:
    """The newest whole checkpoint, or None; removes what is not whole."""
    whole: dict[int, Path] = {}
    for path in checkpoints.glob("checkpoint-*"):
        match = _NAME.match(path.name)
        if match and (path / _SEAL).exists():
            whole[int(match[1])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return str(whole[max(whole)]) if whole else None


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder."""
    found = []
    for path in checkpoints.glob("checkpoint-*"):
        match = _NAME.match(path.name)
        if match and (path / _SEAL).exists():
            found.append(int(match[1]))
    return found


class BestWeights:
    """The adapter files of the step with the lowest validation loss, on disk.

    ``loss`` is None and ``step`` -1 until something was kept. A resumed run finds what it kept
    before, even past its last checkpoint: it comes to the same weights at that step again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._score = folder / "score.json"
        self.step, self.loss = -1, None
        if self._score.exists():
            score = json.loads(self._score.read_text())
            self.step, self.loss = score["step"], score["loss"]

    step: int
    loss: float | None

    def keep(self, model: Any, spec: TrainSpec, step: int, loss: float | None) -> None:
        """Write the adapter of ``model`` in canonical form: same weights, same bytes.

        Raises TrainingError when they are no finite numbers.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(model)
        tensors = {
            name: state[name].detach().to("cpu").float().contiguous() for name in sorted(state)
        }
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            # The loss, which is computed before the step, is still one when the last step breaks it.
            raise TrainingError(
                f"the weights are no finite numbers after step {step}: lower training.learning_rate",
                "loss_not_finite",
            )
        scratch = self._folder / f".{WEIGHTS}"
        save_file(tensors, str(scratch), metadata={"format": "pt"})
        _flush(scratch)
        # The score goes first and last: between the two files it must not claim another's loss.
        self._score.unlink(missing_ok=True)
        scratch.replace(self._folder / WEIGHTS)
        text = json.dumps(adapter_config(spec, layer_count(model)), indent=2, sort_keys=True)
        write_atomically(self._folder / CONFIG, text + "\n")
        write_atomically(self._score, json.dumps({"step": step, "loss": loss}))
        self.step, self.loss = step, loss


def adapter_config(spec: TrainSpec, layers: int) -> dict[str, Any]:
    """The PEFT configuration of the adapter, without what varies between machines.

    The base model is named by fingerprint in the manifest; a path here would change the digest.
    """
    lora = spec.lora
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": adapted_layers(spec, layers),
        # alpha / sqrt(r) is (alpha sqrt(r)) / r: any engine computes it, knowing rsLoRA or not.
        "lora_alpha": lora.alpha * math.sqrt(lora.rank) if lora.rslora else lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": sorted(lora.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def adapted_layers(spec: TrainSpec, layers: int) -> list[int] | None:
    """The indices of the last ``spec.lora.last_layers`` of ``layers``; None for all of them."""
    last = spec.lora.last_layers
    if last is None or last >= layers:
        return None
    return list(range(layers - last, layers))


def layer_count(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
