"""The loss of the answers alone, and batches without padding. Imported by worker processes only.

Three quarters of a small model's tokens are prompt, whose next token nobody asks for; with a
vocabulary of 50,000 the projection to logits is a fifth of the work. So hidden states are selected
before the projection: the same loss and gradients, computed for the answer's tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from trainers.encoding import IGNORED


def answer_loss(model: Any, inputs: dict[str, Any], items: Any = None) -> Any:
    """Mean negative log-likelihood of the labelled tokens, nats per token.

    Equal to the loss that causal language models of transformers compute (labels shifted by one,
    logits in float32), whatever the architecture does to its logits after the projection.

    Args:
        model: a causal language model, wrapped or not.
        inputs: its inputs with ``labels`` [batch, time]; ``IGNORED`` labels count nothing.
        items: divide by this instead of the number of labelled tokens (gradient accumulation).
    """
    import torch

    labels = inputs["labels"][:, 1:]
    wanted = labels != IGNORED
    others = {name: value for name, value in inputs.items() if name != "labels"}
    with _projecting_only(model, wanted):
        logits = model(**others, use_cache=False).logits
    total = torch.nn.functional.cross_entropy(
        logits[0].float(), labels[wanted].to(logits.device), reduction="sum"
    )
    return total / (wanted.sum() if items is None else items)


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
