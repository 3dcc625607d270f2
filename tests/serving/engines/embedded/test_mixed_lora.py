"""The bank against PEFT, which is the oracle for what an adapter computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from infra.artifacts.base import read_base_shape
from serving.engines.embedded.adapter_weights import read_adapter
from serving.engines.embedded.mixed_lora import BASE_SLOT, AdapterBank

Named = list[tuple[str, Path]]


@pytest.fixture(scope="module")
def bank(base: Path, adapters: Named) -> tuple[Any, AdapterBank, list[int]]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    bank = AdapterBank(model)
    shape = read_base_shape(base)
    slots = [
        bank.add(read_adapter(name, folder, shape, bank.layers, max_rank=16))
        for name, folder in adapters
    ]
    return model, bank, slots


@pytest.fixture(scope="module")
def oracle(base: Path, adapters: Named) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = None
    for name, folder in adapters:
        key = name.replace("@", "_")
        if peft is None:
            peft = PeftModel.from_pretrained(model, folder, adapter_name=key)
        else:
            peft.load_adapter(folder, adapter_name=key)
    assert peft is not None
    return peft.eval()


def names_of(adapters: Named, rows: list[int]) -> list[str]:
    return ["__base__" if row < 0 else adapters[row][0].replace("@", "_") for row in rows]


ROWS = [
    pytest.param([0, 1, -1], id="two adapters and the base"),
    pytest.param([2, 2, 2], id="one adapter"),
    pytest.param([-1, -1, -1], id="base only"),
    pytest.param([2, -1, 0, 1, 0, -1, 2], id="all, several rows each"),
]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("prompts", [True, False], ids=["prompts", "tokens"])
@torch.inference_mode()
def test_logits_equal_peft(
    bank: tuple[Any, AdapterBank, list[int]],
    oracle: Any,
    adapters: Named,
    rows: list[int],
    prompts: bool,
) -> None:
    model, adapter_bank, slots = bank
    ids = torch.randint(
        3, 300, (len(rows), 9 if prompts else 1), generator=torch.Generator().manual_seed(5)
    )
    expected = oracle(input_ids=ids, adapter_names=names_of(adapters, rows)).logits
    adapter_bank.select([BASE_SLOT if row < 0 else slots[row] for row in rows], prompts=prompts)
    actual = model(input_ids=ids).logits
    # Scales that are powers of two are exact; 24 / 16 rounds once more or once less than in PEFT.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    if prompts and 2 not in rows:
        assert torch.equal(actual, expected)


@torch.inference_mode()
def test_adapters_really_change_the_logits(
    bank: tuple[Any, AdapterBank, list[int]],
) -> None:
    model, adapter_bank, slots = bank
    ids = torch.arange(40, 60).repeat(4, 1)
    adapter_bank.select([BASE_SLOT, *slots], prompts=True)
    logits = model(input_ids=ids).logits[:, -1]
    distances = torch.cdist(logits, logits) + torch.eye(4) * 100
    assert distances.min() > 0.01


@torch.inference_mode()
def test_an_adapter_that_overflows_spoils_only_its_own_rows(base: Path, adapters: Named) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    bank = AdapterBank(model)
    shape = read_base_shape(base)
    good = read_adapter(*adapters[0], shape, bank.layers, max_rank=16)
    bad = read_adapter(*adapters[0], shape, bank.layers, max_rank=16)
    for a, b in bad.pairs.values():
        a.fill_(3e38)
        b.fill_(3e38)
    slots = [bank.add(good), bank.add(bad)]
    ids = torch.tensor([[40], [40]])
    for prompts in (True, False):
        bank.select([slots[0], slots[0]], prompts=prompts)
        alone = model(input_ids=ids).logits
        bank.select(slots, prompts=prompts)
        mixed = model(input_ids=ids).logits
        torch.testing.assert_close(mixed[0], alone[0])
        assert not mixed[1].isfinite().all()


def test_removed_adapters_leave_nothing_behind(base: Path, adapters: Named) -> None:
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval())
    shape = read_base_shape(base)
    weights = [read_adapter(*pair, shape, bank.layers, max_rank=16) for pair in adapters]
    first, second = bank.add(weights[0]), bank.add(weights[1])
    bank.select([first, second, BASE_SLOT], prompts=False)
    with pytest.raises(RuntimeError, match="still in use"):
        bank.remove(first)
    bank.select([second, BASE_SLOT], prompts=False)
    bank.remove(first)
    assert all(first not in layer.pairs for layer in bank.layers.values())
    assert bank.add(weights[2]) not in (first, second), "a slot number must never be used again"


def test_a_model_without_projections_is_refused() -> None:
    with pytest.raises(ValueError, match="use vLLM"):
        AdapterBank(torch.nn.Sequential(torch.nn.Linear(2, 2)))
