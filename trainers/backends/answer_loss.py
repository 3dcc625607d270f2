"""The loss of the answers alone, and batches without padding. Imported by worker processes only.

Three quarters of a small model's tokens are prompt, whose next token nobody asks for; with a
vocabulary of 50,000 the projection to logits is a fifth of the work. So hidden states are selected
before the projection: the same loss and gradients, computed for the answer's tokens only. Logits exist
while every activation of the step still does, so what is made of them in float32 decides the peak of
memory: it is made a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from trainers.encoding import IGNORED

ROWS_AT_ONCE = 64
"""Tokens whose logits are in float32 at the same time."""


def answer_loss(model: Any, inputs: dict[str, Any], items: Any = None) -> Any:
    """Mean negative log-likelihood of the labelled tokens, nats per token.

    Equal to the loss that causal language models of transformers compute (labels shifted by one,
    logits in float32), whatever the architecture does to its logits after the projection.

    Args:
        model: a causal language model, wrapped or not.
        inputs: its inputs with ``labels`` [batch, time]; ``IGNORED`` labels count nothing.
        items: divide by this instead of the number of labelled tokens (gradient accumulation).
    """
    labels = inputs["labels"][:, 1:]
    wanted = labels != IGNORED
    others = {name: value for name, value in inputs.items() if name != "labels"}
    with _projecting_only(model, wanted):
        logits = model(**others, use_cache=False).logits
    total = _cross_entropy().apply(logits[0], labels[wanted].to(logits.device))
    return total / (wanted.sum() if items is None else items)


@cache
def _cross_entropy() -> Any:
    """A torch function: sum of the rows' cross entropies, computed in float32.

    As ``torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")``, which would hold
    three float32 copies of all logits.
    """
    import torch

    class CrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, labels: Any) -> Any:
            norms = logits.new_empty(len(logits), dtype=torch.float32)
            total = logits.new_zeros((), dtype=torch.float32)
            for at in range(0, len(logits), ROWS_AT_ONCE):
                rows = slice(at, at + ROWS_AT_ONCE)
                some = logits[rows].float()
                norms[rows] = some.logsumexp(-1)
                total += (norms[rows] - some.gather(-1, labels[rows, None])[:, 0]).sum()
            ctx.save_for_backward(logits, labels, norms)
            return total

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            logits, labels, norms = ctx.saved_tensors
            found = torch.empty_like(logits)
            for at in range(0, len(logits), ROWS_AT_ONCE):
                rows = slice(at, at + ROWS_AT_ONCE)
                some = logits[rows].float().sub_(norms[rows, None]).exp_()
                some[torch.arange(len(some), device=some.device), labels[rows]] -= 1
                found[rows] = some.mul_(gradient)
            return found, None

    return CrossEntropy


@contextmanager
def _projecting_only(model: Any, wanted: Any) -> Any:
    """Let the model's last projection see only ``wanted`` [batch, time - 1], as one row."""
    head = _head(model)

    def select(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        return (hidden[:, :-1][wanted.to(hidden.device)].unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _head(model: Any) -> Any:
    while hasattr(model, "module"):  # data-parallel wrappers
        model = model.module
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError("the base model has no output projection")
    return head


def pack(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate examples into one row [1, total length]; positions start anew at each example.

    From such positions the model's mask keeps each example to itself, so the loss is that of a
    padded batch.
    """
    import torch

    def row(values: list[int]) -> Any:
        return torch.tensor([values], dtype=torch.long)

    return {
        "input_ids": row([token for example in examples for token in example["input_ids"]]),
        "labels": row([label for example in examples for label in example["labels"]]),
        "position_ids": row(
            [place for example in examples for place in range(len(example["input_ids"]))]
        ),
    }
