"""What the trained model itself says of some validation prompts, for the judge to compare the engine with.

One pass over prompt and right answer tells, at every token, which one the model would have said
there and how surely. Up to the first place where that is not the right token, the context is the one
that greedy decoding comes to. So nothing is generated, and yet this is what any engine that serves
the same weights must say, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.artifacts.manifest import WEIGHTS
from trainers.encoding import Encoded
from trainers.run_folder import Probe

MAX_PROBES = 16
MAX_TOKENS = 64
CLOSE = 0.25
"""Nats between the two likeliest tokens below which arithmetic may decide: what follows is not
compared."""


def probe(
    model: Any, best: Path, tokenizer: Any, examples: Sequence[tuple[str, Encoded]]
) -> tuple[Probe, ...]:
    """Probe the kept weights. Leaves them in ``model``.

    Args:
        best: folder of the kept adapter's weights.
        tokenizer: the base model's.
        examples: prompt key and example.
    """
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(str(best / WEIGHTS)))
    model.eval()
    device = next(model.parameters()).device
    found = []
    for key, example in examples:
        ids = torch.tensor([example.input_ids], device=device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        start = len(example.prompt) - 1
        said = logits[0, start : start + len(example.completion)].float().log_softmax(dim=-1)
        top = said.topk(2, dim=-1)
        found.append(
            _read(key, example, top.indices[:, 0].tolist(), top.values.tolist(), tokenizer)
        )
    return tuple(found)


def _read(
    key: str, example: Encoded, best: list[int], top: list[list[float]], tokenizer: Any
) -> Probe:
    values: list[float] = []
    certain: list[int] = []
    sure = True
    for right, token, (first, second) in zip(example.completion, best, top, strict=True):
        values.append(round(min(first, 0.0), 4))
        sure = first - second >= CLOSE
        if sure:
            certain.append(token)
        if not sure or token != right or len(values) == MAX_TOKENS:
            break
    if certain and certain[-1] == example.completion[-1]:
        certain.pop()  # the stop token, which is not in the text
    return Probe(
        prompt=key,
        text=tokenizer.decode(certain, skip_special_tokens=False),
        log_probabilities=tuple(values),
    )
