"""What every engine must do, checked on the embedded engine and, when there is one, on a real vLLM,
and on fleets of two of each.

All run as processes behind sockets and are spoken to through the one client. PEFT, in this
process, says what the answers must be. vLLM needs its own environment: ``make test-vllm``, or set
NIGHTSCHOOL_VLLM_PYTHON to a Python that has it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from infra.artifacts.base import read_base_shape
from serving.engines.client import EngineClient
from serving.engines.fleet import Fleet
from serving.engines.protocol import (
    Completion,
    Engine,
    EngineOverloaded,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
)
from serving.engines.reconcile import reconcile
from tests.serving.engines.building import engine_process, make_adapter, vllm_process
from tests.tiny_model import make_tiny_model

VLLM_PYTHON = "NIGHTSCHOOL_VLLM_PYTHON"
TOKENS = 24
Named = list[tuple[str, Path]]
OneOrMany = EngineClient | Fleet


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose end token is likely, so that some answers end by themselves, and that
    never writes half a character: engines are free to show or hide the pieces of one."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    folder = make_tiny_model(tmp_path_factory.mktemp("base"), hidden=256)
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    embeddings[vocabulary["<|im_end|>"]] *= 3
    for token, number in vocabulary.items():
        if not token.isascii():
            embeddings[number] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Named:
    parent = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(base, parent, task="lights", seed=1, rank=8, alpha=16, strength=0.3),
        make_adapter(
            base, parent, task="music", seed=2, rank=4, alpha=8, targets=("v_proj", "down_proj")
        ),
        make_adapter(
            base, parent, task="timer", seed=3, rank=16, alpha=16, layers=[1], strength=0.3
        ),
    ]


class Oracle:
    """Greedy decoding by transformers and PEFT, one prompt at a time, without a cache."""

    def __init__(self, base: Path, adapters: Named) -> None:
        import torch
        from peft import PeftModel
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM

        self.tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.keys = {name: f"adapter{number}" for number, (name, _) in enumerate(adapters)}
        first, folder = adapters[0]
        self.model: Any = PeftModel.from_pretrained(plain, folder, adapter_name=self.keys[first])
        for name, folder in adapters[1:]:
            self.model.load_adapter(folder, adapter_name=self.keys[name])
        self.model.eval()

    def complete(self, name: str | None, prompt: str, max_tokens: int = TOKENS) -> Completion:
        import torch

        end = self.tokenizer.token_to_id("<|im_end|>")
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        key = "__base__" if name is None else self.keys[name]
        generated: list[int] = []
        logprobs: list[float] = []
        while len(generated) < max_tokens and end not in generated:
            with torch.inference_mode():
                logits = self.model(torch.tensor([ids + generated]), adapter_names=[key]).logits
            scores = logits[0, -1].log_softmax(-1)
            generated.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
        stopped = generated[-1] == end
        text = self.tokenizer.decode(
            generated[:-1] if stopped else generated, skip_special_tokens=False
        )
        return Completion(
            text, tuple(logprobs), "stop" if stopped else "length", len(ids), len(generated)
        )


@pytest.fixture(scope="module")
def oracle(base: Path, adapters: Named) -> Oracle:
    return Oracle(base, adapters)


@pytest.fixture(
    scope="module",
    params=[
        ("embedded", 1),
        ("embedded", 2),
        pytest.param(("vllm", 1), marks=pytest.mark.vllm),
        pytest.param(("vllm", 2), marks=pytest.mark.vllm),
    ],
    ids=lambda kind: f"{kind[0]}-{kind[1]}",
)
def urls(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    kind, count = request.param
    options = ["--max-rank", "16", "--max-prompt-tokens", "448", "--max-answer-tokens", "64"]
    python = os.environ.get(VLLM_PYTHON)
    if kind == "vllm" and not python:
        pytest.skip(f"{VLLM_PYTHON} is not set: run `make test-vllm`")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                engine_process(base, *options)
                if kind == "embedded"
                else vllm_process(str(python), base, tmp_path_factory.mktemp("vllm") / "log")
            )
            for _ in range(count)
        ]


@pytest.fixture
async def engine(urls: list[str], base: Path) -> AsyncIterator[OneOrMany]:
    """The engine without any adapter, whatever the test before left in it."""
    clients = [EngineClient(url, base=read_base_shape(base), max_rank=16) for url in urls]
    async with clients[0] if len(clients) == 1 else Fleet(clients) as engine:
        for name in await engine.loaded():
            await engine.ensure_unloaded(name)
        yield engine


def prompt(number: int) -> str:
    places = ("kitchen", "office", "hall", "attic")
    text = " ".join(["turn on the light in the", places[number % 4], "now" * (number // 4)])
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def same(actual: Completion, expected: Completion) -> None:
    assert actual.text == expected.text
    assert actual.finish_reason == expected.finish_reason
    assert actual.token_logprobs == pytest.approx(expected.token_logprobs, abs=2e-3)
    assert actual.prompt_tokens == expected.prompt_tokens
    assert actual.completion_tokens == expected.completion_tokens


def test_one_and_many_are_engines() -> None:
    engines: list[Engine] = [EngineClient("http://x"), Fleet([EngineClient("http://x")])]
    assert engines


async def test_base_and_adapters_answer_as_peft_does_in_one_mixed_crowd(
    engine: OneOrMany, adapters: Named, oracle: Oracle
) -> None:
    for name, folder in adapters:
        assert await engine.ensure_loaded(name, folder)
    asked = [
        (name, prompt(number))
        for number in range(8)
        for name in (None, *(name for name, _ in adapters))
    ]
    answers = await asyncio.gather(
        *(engine.complete(name, text, max_tokens=TOKENS) for name, text in asked)
    )
    expected = [oracle.complete(name, text) for name, text in asked]
    for answer, right in zip(answers, expected, strict=True):
        same(answer, right)
    assert {right.finish_reason for right in expected} == {"stop", "length"}, "both must occur"
    assert len({right.text for right in expected[:4]}) == 4, "the adapters must differ"


async def test_the_stop_tokens_probability_is_the_last_one(
    engine: OneOrMany, oracle: Oracle, adapters: Named
) -> None:
    for name, folder in adapters:
        await engine.ensure_loaded(name, folder)
    texts = [(name, prompt(number)) for number in range(8) for name, _ in adapters]
    name, text = next(what for what in texts if oracle.complete(*what).finish_reason == "stop")
    answer = await engine.complete(name, text, max_tokens=TOKENS)
    assert answer.finish_reason == "stop"
    assert len(answer.token_logprobs) == answer.completion_tokens
    assert "<|im_end|>" not in answer.text
    assert len(answer.tokens) == answer.completion_tokens
    assert answer.tokens[-1] == "<|im_end|>"
    if "\ufffd" not in "".join(answer.tokens):
        assert "".join(answer.tokens[:-1]) == answer.text
    assert max(answer.token_logprobs) <= 0


async def test_stop_strings_end_the_answer(engine: OneOrMany, oracle: Oracle) -> None:
    whole = max(
        (oracle.complete(None, prompt(number)) for number in range(8)), key=lambda c: len(c.text)
    )
    stop = whole.text[4:9]
    answer = await engine.complete(None, prompt_of(whole, oracle), max_tokens=TOKENS, stop=[stop])
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert len(answer.token_logprobs) == answer.completion_tokens < whole.completion_tokens


def prompt_of(completion: Completion, oracle: Oracle) -> str:
    return next(prompt(n) for n in range(8) if oracle.complete(None, prompt(n)) == completion)


async def test_streaming_says_the_same(engine: OneOrMany, adapters: Named, oracle: Oracle) -> None:
    name, folder = adapters[0]
    await engine.ensure_loaded(name, folder)
    for model, number in ((None, 0), (name, 1), (name, 2)):
        expected = oracle.complete(model, prompt(number))
        chunks = [chunk async for chunk in engine.stream(model, prompt(number), max_tokens=TOKENS)]
        assert "".join(chunk.text for chunk in chunks) == expected.text
        logprobs = [value for chunk in chunks for value in chunk.token_logprobs]
        assert logprobs == pytest.approx(expected.token_logprobs, abs=2e-3)
        assert sum(len(chunk.tokens) for chunk in chunks) == len(logprobs)
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [
            expected.finish_reason
        ]


async def test_answers_are_drawn_by_their_seed_and_told_with_the_models_own_chances(
    engine: OneOrMany, adapters: Named, oracle: Oracle
) -> None:
    name, folder = adapters[0]
    await engine.ensure_loaded(name, folder)
    greedy = oracle.complete(name, prompt(1), 1)
    first = await engine.draw(name, prompt(1), count=4, seed=5, max_tokens=8)
    assert len(first) == 4 and len({answer.text for answer in first}) > 1
    for answer in first:
        assert len(answer.token_logprobs) == answer.completion_tokens == len(answer.tokens) <= 8
        assert answer.prompt_tokens == greedy.prompt_tokens
        # Of the model's own distribution: no first token is likelier than the greedy one.
        assert answer.token_logprobs[0] <= greedy.token_logprobs[0] + 2e-3
    again = await engine.draw(name, prompt(1), count=4, seed=5, max_tokens=8)
    assert [answer.text for answer in again] == [answer.text for answer in first]
    other = await engine.draw(name, prompt(1), count=4, seed=77, max_tokens=8)
    assert [answer.text for answer in other] != [answer.text for answer in first]
    with pytest.raises(EngineRefused) as refused:
        await engine.draw("nobody@0123456789abcdef", prompt(1), count=2, seed=1, max_tokens=4)
    assert refused.value.status == 404


async def test_loading_is_idempotent_listed_and_undone(engine: OneOrMany, adapters: Named) -> None:
    name, folder = adapters[0]
    assert await engine.loaded() == {}
    assert await engine.ensure_loaded(name, folder) is True
    assert await engine.ensure_loaded(name, folder) is False
    assert await engine.loaded() == {name: str(folder)}
    assert await engine.probe(name) > 0
    assert await engine.probe(None) > 0
    assert await engine.ensure_unloaded(name) is True
    assert await engine.ensure_unloaded(name) is False
    assert await engine.loaded() == {}
    with pytest.raises(EngineRefused) as refused:
        await engine.complete(name, prompt(0), max_tokens=2)
    assert refused.value.status == 404


async def test_many_loaders_at_once_load_once(engine: OneOrMany, adapters: Named) -> None:
    name, folder = adapters[1]
    results = await asyncio.gather(*(engine.ensure_loaded(name, folder) for _ in range(6)))
    assert sum(results) == 1
    assert list(await engine.loaded()) == [name]


@pytest.mark.parametrize("fault", ["no manifest", "pickle", "damaged", "missing", "other name"])
async def test_bad_folders_are_refused_and_cost_nothing(
    engine: OneOrMany, adapters: Named, tmp_path: Path, fault: str
) -> None:
    name, source = adapters[0]
    folder = tmp_path / name
    shutil.copytree(source, folder)
    if fault == "no manifest":
        (folder / "manifest.json").unlink()
    elif fault == "pickle":
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    elif fault == "damaged":
        with (folder / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\x01" * 8)
    elif fault == "missing":
        shutil.rmtree(folder)
    else:
        name = "lights@0123456789abcdef"
    with pytest.raises(EngineRefused):
        await engine.ensure_loaded(name, folder)
    assert await engine.loaded() == {}
    assert (await engine.complete(None, prompt(0), max_tokens=2)).completion_tokens >= 1


async def test_adapter_for_another_base_is_refused(engine: OneOrMany, tmp_path: Path) -> None:
    smaller = make_tiny_model(tmp_path / "smaller", hidden=64)
    name, folder = make_adapter(smaller, tmp_path, task="stranger", seed=7)
    with pytest.raises(EngineRefused, match="trained on base"):
        await engine.ensure_loaded(name, folder)
    assert await engine.loaded() == {}


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/b", "Upper", "", ".x", "a" * 201])
async def test_names_that_could_walk_a_path_never_reach_the_engine(
    engine: OneOrMany, adapters: Named, name: str
) -> None:
    with pytest.raises(EngineRefused, match="not allowed"):
        await engine.ensure_loaded(name, adapters[0][1])
    with pytest.raises(EngineRefused, match="not allowed"):
        await engine.complete(name, prompt(0), max_tokens=1)
    with pytest.raises(EngineRefused, match="not allowed"):
        await engine.ensure_unloaded(name)


async def test_what_cannot_be_answered_is_refused(engine: OneOrMany) -> None:
    with pytest.raises(EngineRefused) as refused:
        await engine.complete(None, "0 1 2 3 " * 400, max_tokens=4)
    assert refused.value.status == 400
    with pytest.raises(EngineRefused):
        await engine.complete(None, prompt(0), max_tokens=100_000)
    with pytest.raises(EngineRefused) as refused:
        await engine.complete("nobody@0123456789abcdef", prompt(0), max_tokens=4)
    assert refused.value.status == 404
    assert (await engine.complete(None, prompt(0), max_tokens=2)).completion_tokens >= 1


async def test_time_is_bounded(engine: OneOrMany) -> None:
    with pytest.raises(EngineTimeout):
        await engine.complete(None, prompt(0), max_tokens=60, timeout_seconds=0.001)
    assert await engine.healthy()


async def test_reconciling_after_a_restart(engine: OneOrMany, adapters: Named) -> None:
    desired = dict(adapters[:2])
    report = await reconcile(engine, desired)
    assert report.ready == set(desired)
    assert report.failed == {}
    assert set(await engine.loaded()) == set(desired)
    report = await reconcile(engine, dict(adapters[1:]))
    assert report.unloaded == [adapters[0][0]]
    assert set(await engine.loaded()) == set(dict(adapters[1:]))


async def test_an_overloaded_crowd_gets_answers_or_a_clear_no(engine: OneOrMany) -> None:
    async def ask() -> str:
        try:
            await engine.complete(None, prompt(0), max_tokens=8)
        except EngineOverloaded:
            return "overloaded"
        return "answered"

    outcomes = await asyncio.gather(*(ask() for _ in range(200)))
    assert set(outcomes) <= {"answered", "overloaded"}
    assert "answered" in outcomes
    assert await ask() == "answered"


async def test_nobody_there() -> None:
    async with EngineClient("http://127.0.0.1:9") as nobody:
        assert not await nobody.healthy()
        with pytest.raises(EngineUnavailable):
            await nobody.complete("a@0123456789abcdef", "x", max_tokens=1)
        with pytest.raises(EngineUnavailable):
            await nobody.loaded()
