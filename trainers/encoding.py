"""Examples to token ids, so that what is trained on is exactly what serving asks for.

Serving tokenizes the rendered prompt alone and the model continues it token by token until the stop
token. So prompt and answer are tokenized apart here and joined as ids: tokenizing the joined text
could merge characters across the boundary into a token that serving never produces.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.prompting.template import STOP, TURN, PromptFormat, render_answer, render_prompt
from trainers.failures import TrainingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
"""The label of a token that the loss leaves out (the convention of the training libraries)."""

Example = Mapping[str, Any]
"""``{"request": OpenAI request, "answer": OpenAI assistant message}``."""


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
    stop = turn_tokens(tokenizer)[1:]
    pairs = zip(
        tokenizer.encode_batch(prompts, add_special_tokens=False),
        tokenizer.encode_batch(answers, add_special_tokens=False),
        strict=True,
    )
    encoded = [Encoded(tuple(p.ids), (*a.ids, *stop)) for p, a in pairs]
    kept = tuple(example for example in encoded if len(example) <= max_tokens)
    return EncodedSet(kept, len(encoded) - len(kept))


def turn_tokens(tokenizer: Tokenizer) -> list[int]:
    """The token ids that open and close a turn.

    Raises TrainingError when the base model has no such tokens: spelled out letter by letter, the
    end of an answer would be a dozen tokens that a model seldom gets right.
    """
    ids = {token: tokenizer.token_to_id(token) for token in (TURN, STOP)}
    missing = [token for token, found in ids.items() if found is None]
    if missing:
        raise TrainingError(
            f"the base model has no chat template of ours: its tokenizer lacks {', '.join(missing)}; "
            "use an instruction-tuned base model with ChatML tokens",
            "chat_template_missing",
        )
    return [found for found in ids.values() if found is not None]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a base model folder, without padding or truncation.

    Raises TrainingError where its file cannot be read.
    """
    return _tokenizer(Path(folder).resolve())


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise TrainingError(f"{path} cannot be read: {error}", "base_model_unusable") from error
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


def mixed_order(new: int, old: int, old_share: float, seed: int) -> Iterator[int]:
    """Indices without end: ``range(new)`` in ever new permutations and, with probability
    ``old_share``, the next of ``range(new, new + old)`` in permutations of their own.
    """
    generator = random.Random(seed)

    def passes(indices: range) -> Iterator[int]:
        while True:
            order = list(indices)
            generator.shuffle(order)
            yield from order

    news, olds = passes(range(new)), passes(range(new, new + old))
    while True:
        yield next(olds) if old and generator.random() < old_share else next(news)


def plan_batches(
    lengths: Sequence[int],
    batch_size: int,
    steps: int,
    seed: int,
    *,
    old: int = 0,
    old_share: float = 0.0,
    grouped: bool = True,
) -> list[int]:
    """Which example is at which place of which step: ``steps * batch_size`` indices, in order.

    Every pass over the data is a new permutation; over stretches of eight batches examples are
    sorted by length so that a batch holds little padding, and the batches are shuffled. It is a
    function of its arguments alone, so a resumed run sees the same batches as one never interrupted.

    Args:
        lengths: tokens of each example; the last ``old`` of them are of earlier data sets.
        old_share: how often an example of those is taken.
        grouped: False leaves the permutation as it is.

    Raises TrainingError when there is no (new) example.
    """
    if len(lengths) <= old:
        raise TrainingError(
            "there is no training example that fits the longest sequence", "empty_split"
        )
    total = steps * batch_size
    order = mixed_order(len(lengths) - old, old, old_share, seed)
    stream = list(islice(order, total))
    if not grouped:
        return stream
    generator = random.Random(seed + 1)
    plan: list[int] = []
    for start in range(0, total, 8 * batch_size):
        stretch = stream[start : min(start + 8 * batch_size, total)]
        stretch.sort(key=lambda index: lengths[index])
        batches = [stretch[at : at + batch_size] for at in range(0, len(stretch), batch_size)]
        generator.shuffle(batches)
        plan += [index for batch in batches for index in batch]
    return plan
