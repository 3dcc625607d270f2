"""The cheap loss is the libraries' own loss: same value, same gradients, padded, packed or parted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.backends.answer_loss import ROWS_AT_ONCE, _cross_entropy, answer_loss, pack
from trainers.encoding import IGNORED


@pytest.fixture
def model(tiny_base: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length, answer in ((9, 4), (17, 3), (12, 11), (5, 1)):
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        labels = [IGNORED] * (length - answer) + ids[length - answer :]
        made.append({"input_ids": ids, "labels": labels})
    return made


def padded(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in examples)

    def fill(values: list[int], value: int) -> list[int]:
        return values + [value] * (width - len(values))

    return {
        "input_ids": torch.tensor([fill(row["input_ids"], 0) for row in examples]),
        "attention_mask": torch.tensor([fill([1] * len(r["labels"]), 0) for r in examples]),
        "labels": torch.tensor([fill(row["labels"], IGNORED) for row in examples]),
    }


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("at_once", [ROWS_AT_ONCE, 4])
def test_value_and_gradients_are_those_of_the_library(
    model: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.backends.answer_loss.ROWS_AT_ONCE", at_once)
    batch = padded(rows())
    theirs = model(**batch).loss
    expected = gradients(model, theirs)
    ours = answer_loss(model, batch)
    found = gradients(model, ours)
    torch.testing.assert_close(ours, theirs)
    assert set(found) == set(expected)
    assert any(gradient.abs().max() > 1e-3 for gradient in found.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    # The hook is gone: the model answers as before.
    torch.testing.assert_close(model(**batch).loss, theirs)


def test_between_the_passes_the_loss_keeps_the_logits_as_they_are_and_no_wider_copy() -> None:
    """Three float32 copies of them were what made a batch of long answers need the most memory."""
    logits = torch.randn(100, 50, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.arange(100) % 50
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        loss = _cross_entropy().apply(logits, labels)
    assert [one.dtype for one in kept if one.numel() >= logits.numel()] == [torch.bfloat16]
    (found,) = torch.autograd.grad(loss, logits)
    plain = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain, logits)[0])


def test_packed_examples_do_not_see_each_other(model: Any) -> None:
    expected = answer_loss(model, padded(rows()))
    torch.testing.assert_close(answer_loss(model, pack(rows())), expected)


def test_parts_of_a_step_add_up_to_the_whole(model: Any) -> None:
    examples = rows()
    whole = answer_loss(model, padded(examples))
    items = torch.tensor(sum(label != IGNORED for row in examples for label in row["labels"]))
    parts = [answer_loss(model, padded(examples[at : at + 2]), items) for at in (0, 2)]
    torch.testing.assert_close(sum(parts), whole)
