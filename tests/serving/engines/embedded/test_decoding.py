"""Batched decoding against the plainest one there is: no cache, no batch, PEFT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from infra.artifacts.base import read_base_shape
from serving.engines.embedded import base_model
from serving.engines.embedded.adapter_weights import read_adapter
from serving.engines.embedded.base_model import (
    LARGE_PARAMETERS,
    BaseModel,
    BaseModelRefused,
    choose_precision,
    count_parameters,
    load_base_model,
)
from serving.engines.embedded.decoding import Row, RunningBatch
from serving.engines.embedded.mixed_lora import BASE_SLOT, AdapterBank

Named = list[tuple[str, Path]]
PROMPTS = [
    "turn on the light",
    "<|im_start|>user\nwhat is the weather in the office today<|im_end|>\n<|im_start|>assistant\n",
    "0",
    '{"name":"turn_on","arguments":{"area":"kitchen"}} and then the heater in the living room',
]


class Decoder:
    """The base model with the bank, and the oracle beside it."""

    def __init__(self, base: Path, adapters: Named) -> None:
        self.base: BaseModel = load_base_model(base, "float32")
        self.bank = AdapterBank(self.base.model)
        shape = read_base_shape(base)
        self.slots = [BASE_SLOT] + [
            self.bank.add(read_adapter(*pair, shape, self.bank.layers, max_rank=16))
            for pair in adapters
        ]
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.oracle: Any = PeftModel.from_pretrained(plain, adapters[0][1], adapter_name="1")
        for number, (_, folder) in enumerate(adapters[1:], start=2):
            self.oracle.load_adapter(folder, adapter_name=str(number))
        self.oracle.eval()

    def batch(self) -> RunningBatch:
        return RunningBatch(
            self.base.model, self.bank, pad_token=self.base.pad_token, decode=self.base.decode
        )

    def row(self, prompt: int, adapter: int, max_tokens: int, **options: Any) -> Row:
        ids = self.base.encode(PROMPTS[prompt])
        return Row(ids, self.slots[adapter], max_tokens, **options)

    @torch.inference_mode()
    def expected(self, prompt: int, adapter: int, max_tokens: int) -> tuple[list[int], list[float]]:
        tokens, logprobs = self.base.encode(PROMPTS[prompt]), []
        start = len(tokens)
        for _ in range(max_tokens):
            names = ["__base__" if adapter == 0 else str(adapter)]
            logits = self.oracle(input_ids=torch.tensor([tokens]), adapter_names=names).logits
            scores = logits[0, -1].log_softmax(-1)
            tokens.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
        return tokens[start:], logprobs


@pytest.fixture(scope="module")
def decoder(base: Path, adapters: Named) -> Decoder:
    return Decoder(base, adapters)


def run(batch: RunningBatch, rows: list[Row]) -> None:
    batch.admit(rows)
    while batch.rows:
        batch.step()


def test_mixed_batch_equals_plain_decoding_one_by_one(decoder: Decoder) -> None:
    asked = [(0, 1), (1, 2), (2, 0), (3, 3), (1, 1), (1, 0)]
    rows = [decoder.row(prompt, adapter, 12) for prompt, adapter in asked]
    run(decoder.batch(), rows)
    for row, (prompt, adapter) in zip(rows, asked, strict=True):
        tokens, logprobs = decoder.expected(prompt, adapter, 12)
        assert row.tokens == tokens
        assert row.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert row.finish_reason == "length"
    assert len({tuple(row.tokens) for row in rows[-2:]}) == 2, "adapters must show in the text"


def test_drawn_answers_follow_the_models_chances_whatever_else_is_in_the_batch(
    decoder: Decoder,
) -> None:
    def drawn(seed: int, temperature: float = 1.0, tokens: int = 1) -> Row:
        drawing = torch.Generator()
        drawing.manual_seed(seed)
        return decoder.row(1, 1, tokens, temperature=temperature, drawing=drawing)

    with torch.inference_mode():
        ids = torch.tensor([decoder.base.encode(PROMPTS[1])])
        logits = decoder.oracle(input_ids=ids, adapter_names=["1"]).logits
    scores = logits[0, -1].log_softmax(-1)
    chances = scores.exp()
    entropy = float(-(chances * scores).sum())
    spread = float((chances * (scores + entropy) ** 2).sum()) ** 0.5
    rows = [drawn(seed) for seed in range(400)]
    run(decoder.batch(), rows)
    told = [row.logprobs[0] for row in rows]
    assert told == pytest.approx([float(scores[row.tokens[0]]) for row in rows], abs=1e-4)
    assert abs(sum(told) / len(told) + entropy) < 4 * spread / len(told) ** 0.5
    cold, alone, greedy = drawn(3, 1e-4, 8), drawn(3, tokens=8), decoder.row(1, 1, 8)
    run(decoder.batch(), [cold, decoder.row(2, 2, 8), greedy])
    assert cold.tokens == greedy.tokens == decoder.expected(1, 1, 8)[0]
    run(decoder.batch(), [alone])
    company = drawn(3, tokens=8)
    run(decoder.batch(), [drawn(4, tokens=8), greedy_again := decoder.row(1, 1, 8), company])
    assert company.tokens == alone.tokens and greedy_again.tokens == greedy.tokens


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_text_does_not_depend_on_company(decoder: Decoder, data: st.DataObject) -> None:
    """Rows join and leave at any moment; each says what it says alone."""
    asked = data.draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 10)),
            min_size=2,
            max_size=6,
        )
    )
    alone = [decoder.row(*what) for what in asked]
    for row in alone:
        run(decoder.batch(), [row])
    together = [decoder.row(*what) for what in asked]
    batch, waiting = decoder.batch(), list(together)
    while waiting or batch.rows:
        arriving = data.draw(st.integers(0 if batch.rows else 1, max(1, len(waiting))))
        if waiting and arriving:
            batch.admit(waiting[:arriving])
            waiting = waiting[arriving:]
        if batch.rows:
            batch.step()
    assert [row.tokens for row in together] == [row.tokens for row in alone]
    for row, other in zip(together, alone, strict=True):
        assert row.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_stop_token_ends_a_row_and_is_counted(decoder: Decoder) -> None:
    tokens, logprobs = decoder.expected(1, 1, 8)
    stop = next(token for token in tokens if tokens.index(token) >= 2 or token != tokens[0])
    place = tokens.index(stop)
    row = decoder.row(1, 1, 8, stop_tokens=frozenset({stop}))
    other = decoder.row(0, 2, 8)
    run(decoder.batch(), [row, other])
    assert (row.tokens, row.finish_reason) == (tokens[: place + 1], "stop")
    assert row.logprobs == pytest.approx(logprobs[: place + 1], abs=1e-4)
    assert other.tokens == decoder.expected(0, 2, 8)[0]


def test_stop_text_of_several_tokens(decoder: Decoder) -> None:
    tokens, _ = decoder.expected(3, 1, 8)
    text = decoder.base.decode(tokens[2:5])
    row = decoder.row(3, 1, 30, stop_texts=(text,))
    run(decoder.batch(), [row])
    assert row.finish_reason == "stop"
    assert text in decoder.base.decode(row.tokens)
    assert text not in decoder.base.decode(row.tokens[:-1])


def test_cancelled_rows_leave_and_the_others_go_on(decoder: Decoder) -> None:
    long, short = decoder.row(3, 1, 8), decoder.row(2, 2, 8)
    batch = decoder.batch()
    batch.admit([long, short])
    batch.step()
    batch.cancel([long])
    while batch.rows:
        batch.step()
    assert len(long.tokens) == 2
    assert short.tokens == decoder.expected(2, 2, 8)[0]


def test_row_with_output_that_is_not_finite_fails_alone(decoder: Decoder, adapters: Named) -> None:
    shape = read_base_shape(decoder.base.folder)
    weights = read_adapter(*adapters[0], shape, decoder.bank.layers, max_rank=16)
    broken = {path: (a * 1e30, b * 1e30) for path, (a, b) in weights.pairs.items()}
    slot = decoder.bank.add(replace(weights, pairs=broken))
    bad, good = Row(decoder.base.encode("0 1 2"), slot, 6), decoder.row(0, 1, 6)
    run(decoder.batch(), [bad, good])
    assert bad.error is not None
    assert bad.finish_reason is None
    assert good.tokens == decoder.expected(0, 1, 6)[0]


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelRefused, match=r"config\.json"):
        load_base_model(tmp_path)


def test_precision_follows_size_and_processor(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_parameters(base) == sum(
        parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(base).parameters()
    )
    for fast in (True, False):
        monkeypatch.setattr(base_model, "_has_bfloat16", lambda fast=fast: fast)
        chosen = [
            choose_precision("auto", size) for size in (LARGE_PARAMETERS - 1, LARGE_PARAMETERS)
        ]
        assert chosen == [torch.float32, torch.bfloat16 if fast else torch.float32]
        assert choose_precision("bfloat16", 1) is torch.bfloat16
        assert choose_precision("float32", LARGE_PARAMETERS) is torch.float32
    assert load_base_model(base).precision == "float32"
