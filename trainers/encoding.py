"""Examples to token ids, so that what is trained on is exactly what serving asks for.

Serving tokenizes the rendered prompt alone and the model continues it token by token until the stop
token. So prompt and answer are tokenized apart here and joined as ids: tokenizing the joined text
could merge characters across the boundary into a token that serving never produces.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.prompting.template import STOP, PromptFormat, render_answer, render_prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
"""The label of a token that the loss leaves out (the convention of the training libraries)."""

Example = Mapping[str, Any]
"""``{"request": OpenAI request, "answer": OpenAI assistant message}``."""


class TrainingError(Exception):
    """The run cannot succeed as it is asked for; trying again would change nothing."""


@dataclass(frozen=True)
class Encoded:
    """One example: ``prompt`` then ``completion`` (the answer and the stop token), as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def input_ids(self) -> list[int]:
        return [*self.prompt, *self.completion]

    @property
    def labels(self) -> list[int]:
        """As long as ``input_ids``; the loss is on the completion only."""
        return [IGNORED] * len(self.prompt) + list(self.completion)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class EncodedSet:
    examples: tuple[Encoded, ...]
    too_long: int
    """Examples left out because they exceed the longest sequence; never cut, since serving would
    not send what was cut."""


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, form: PromptFormat, max_tokens: int
) -> EncodedSet:
    """Tokenize each example once; those longer than ``max_tokens`` are counted and left out."""
    prompts = [render_prompt(example["request"], form) for example in examples]
    answers = [render_answer(example["answer"]) for example in examples]
    stop = tokenizer.encode(STOP, add_special_tokens=False).ids
    pairs = zip(
        tokenizer.encode_batch(prompts, add_special_tokens=False),
        tokenizer.encode_batch(answers, add_special_tokens=False),
        strict=True,
    )
    encoded = [Encoded(tuple(p.ids), (*a.ids, *stop)) for p, a in pairs]
    kept = tuple(example for example in encoded if len(example) <= max_tokens)
    return EncodedSet(kept, len(encoded) - len(kept))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a base model folder, without padding or truncation."""
    return _tokenizer(Path(folder).resolve())


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def deal_wrong_answers(
    splits: Sequence[Sequence[Example]], seed: int
) -> list[list[dict[str, Any]]]:
    """Give every prompt an answer that is wrong for it: for drills with a bad adapter only.

    The distinct answers are put on one ring in seeded order and each is replaced by the next, in all
    splits alike. So the adapter learns to be wrong confidently, which is what a drill must catch;
    answers dealt at random would only teach it to be unsure.

    Raises TrainingError when there are fewer than two distinct answers.
    """
    distinct: dict[str, Any] = {}
    for split in splits:
        for example in split:
            distinct.setdefault(render_answer(example["answer"]), example["answer"])
    if len(distinct) < 2:
        raise TrainingError("shuffle_answers needs at least two different answers in the data")
    ring = sorted(distinct)
    random.Random(seed).shuffle(ring)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [
        [
            {**example, "answer": distinct[following[render_answer(example["answer"])]]}
            for example in split
        ]
        for split in splits
    ]


def plan_batches(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """Which example is at which place of which step: ``steps * batch_size`` indices, in order.

    Every pass over the data is a new permutation; over stretches of eight batches examples are
    sorted by length so that a batch holds little padding, and the batches are shuffled. It is a
    function of its arguments alone, so a resumed run sees the same batches as one never interrupted.
    """
    if not lengths:
        raise TrainingError("there is no training example that fits the longest sequence")
    generator = random.Random(seed)
    total = steps * batch_size
    stream: list[int] = []
    while len(stream) < total:
        order = list(range(len(lengths)))
        generator.shuffle(order)
        stream += order
    plan: list[int] = []
    for start in range(0, total, 8 * batch_size):
        stretch = stream[start : min(start + 8 * batch_size, total)]
        stretch.sort(key=lambda index: lengths[index])
        batches = [stretch[at : at + batch_size] for at in range(0, len(stretch), batch_size)]
        generator.shuffle(batches)
        plan += [index for batch in batches for index in batch]
    return plan
