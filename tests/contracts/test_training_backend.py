"""Every training backend: learns, is deterministic, resumes, writes an adapter that serving accepts.

Each run has a process of its own, as in production: one of the backends changes the libraries that
it imports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from evaluators.engine_match import Said, compare_with_trainer
from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import digest_folder
from infra.prompting.template import PromptFormat
from serving.engines.client import EngineClient
from serving.small_model import SmallModel
from tests.serving.engines.building import start_engine
from tests.tiny_model import make_tiny_model
from tests.tiny_run import checkpoint_sealed, tiny_run, train_to_end, training_process, wait_until
from trainers.artifact import package
from trainers.data_sets.labels import prompt_key
from trainers.run_folder import RunFolder, read_tail

STEPS = 24


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def engine_url(base: Path) -> Iterator[str]:
    with start_engine(base, "--max-rank", "16", "--max-prompt-tokens", "448") as engine:
        yield engine.url


@pytest.fixture(scope="module", params=["peft", "unsloth"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "unsloth" and find_spec("unsloth") is None:
        pytest.skip("the optional package unsloth is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def trained(backend: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = tiny_run(
        tmp_path_factory.mktemp("runs") / backend, base, steps=STEPS, request={"backend": backend}
    )
    assert train_to_end(run) == 0, run.log_file.read_text()
    return run


def test_it_learns(trained: RunFolder, backend: str) -> None:
    result = trained.result()
    assert result is not None
    assert (result.backend, result.steps) == (backend, STEPS)
    losses = [event["loss"] for event in read_tail(trained.events_file) if event.get("tokens")]
    assert len(losses) == STEPS
    assert sum(losses[-4:]) / 4 < losses[0] - 1


def test_its_adapter_fits_the_base(trained: RunFolder, base: Path) -> None:
    packaged = package(trained.path)
    assert packaged.manifest.base_digest == read_base_shape(base).digest


def test_killed_and_resumed_it_gives_the_same_adapter(
    trained: RunFolder, backend: str, base: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "killed", base, steps=STEPS, request={"backend": backend})
    with training_process(run) as process:
        wait_until(lambda: checkpoint_sealed(run) or process.poll() is not None)
        process.kill()
        process.wait()
    assert run.result() is None, "it was to be killed before its end"
    assert train_to_end(run) == 0, run.log_file.read_text()
    assert digest_folder(run.adapter) == digest_folder(trained.adapter)


def test_the_accelerated_backend_refuses_a_worker_that_lost_its_gpu(
    base: Path, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = tiny_run(tmp_path / "r", base, request={"backend": "unsloth", "allow_cpu": False})
    assert train_to_end(run) == 1
    assert "no GPU" in (run.error() or "")


def test_the_engine_says_what_the_trainer_wrote_down(trained: RunFolder, engine_url: str) -> None:
    """And without the adapter it does not: that is what the judge's alarm is for."""
    packaged = package(trained.path)
    probes = packaged.manifest.metrics["training"]["probes"]
    asked = [example["request"] for example in trained.examples("validation")]
    assert {probe["prompt"] for probe in probes} == {prompt_key(request) for request in asked}

    async def said(url: str, name: str | None) -> dict[str, Said]:
        async with EngineClient(url) as engine:
            small = SmallModel(engine)
            if name is not None:
                await engine.ensure_loaded(name, packaged.folder)
            form = PromptFormat.from_dict(packaged.manifest.format)
            answers = [await small.answer(r, adapter=name, form=form) for r in asked]
        return {
            prompt_key(request): Said(answer.text, answer.token_logprobs)
            for request, answer in zip(asked, answers, strict=True)
        }

    own = compare_with_trainer(probes, asyncio.run(said(engine_url, packaged.name)), 0.01)
    bare = compare_with_trainer(probes, asyncio.run(said(engine_url, None)), 0.01)
    assert own is not None and own.agrees, own
    assert own.rows == len(asked) and own.tokens > len(asked)
    assert bare is not None and not bare.agrees, bare
