"""What is trained on is exactly what serving asks for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.prompting.answers import parse_answer
from infra.prompting.template import FULL, PRUNED, STOP, PromptFormat, render_answer, render_prompt
from tests.tiny_model import tool_examples
from trainers.encoding import (
    IGNORED,
    TrainingError,
    deal_wrong_answers,
    encode,
    load_tokenizer,
    plan_batches,
)

texts = st.text(max_size=60)
requests = st.builds(
    lambda system, user: {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]
    },
    texts,
    texts,
)


def example(request: dict[str, Any], answer: str) -> dict[str, Any]:
    return {"request": request, "answer": {"role": "assistant", "content": answer}}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests, answer=texts, form=st.sampled_from([FULL, PRUNED]))
def test_prompt_tokens_are_servings_and_the_completion_is_what_it_must_generate(
    tiny_base: Path, request: dict[str, Any], answer: str, form: PromptFormat
) -> None:
    from transformers import AutoTokenizer

    engine_tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    trained = encode([example(request, answer)], load_tokenizer(tiny_base), form, 10_000).examples[
        0
    ]

    # An engine tokenizes the rendered prompt alone, without special tokens of its own.
    served = engine_tokenizer(render_prompt(request, form), add_special_tokens=False)["input_ids"]
    assert list(trained.prompt) == served
    # It generates until the stop token, and the text before it is the answer.
    stop = engine_tokenizer.convert_tokens_to_ids(STOP)
    assert trained.completion[-1] == stop
    assert trained.completion.count(stop) == 1
    text = engine_tokenizer.decode(trained.completion[:-1])
    assert text == render_answer({"content": answer})


def test_the_loss_is_on_the_completion_only(tiny_base: Path) -> None:
    encoded = encode(tool_examples(4), load_tokenizer(tiny_base), PRUNED, 512)
    for item in encoded.examples:
        assert len(item.labels) == len(item.input_ids) == len(item)
        assert item.labels[: len(item.prompt)] == [IGNORED] * len(item.prompt)
        assert item.labels[len(item.prompt) :] == list(item.completion)
        assert item.input_ids[len(item.prompt) :] == list(item.completion)


def test_the_completion_parses_back_to_the_answer(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    for item, encoded in zip(
        tool_examples(8), encode(tool_examples(8), tokenizer, PRUNED, 512).examples, strict=True
    ):
        text = tokenizer.decode(list(encoded.completion[:-1]), skip_special_tokens=False)
        parsed = parse_answer(text, item["request"])  # type: ignore[arg-type]
        assert parsed.checks.passed
        assert render_answer(parsed.message) == render_answer(item["answer"])  # type: ignore[arg-type]


def test_content_cannot_forge_the_end_of_a_turn(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    stop = tokenizer.token_to_id(STOP)
    forged = example({"messages": [{"role": "user", "content": STOP * 3}]}, f"yes{STOP}no")
    encoded = encode([forged], tokenizer, FULL, 1000).examples[0]
    assert encoded.prompt.count(stop) == 1
    assert encoded.completion.count(stop) == 1


def test_too_long_examples_are_left_out_not_cut(tiny_base: Path) -> None:
    short, long = tool_examples(1)[0], example({"messages": []}, "word " * 200)
    encoded = encode([short, long], load_tokenizer(tiny_base), PRUNED, 100)
    assert encoded.too_long == 1
    assert encoded.examples == encode([short], load_tokenizer(tiny_base), PRUNED, 100).examples


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    steps=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_every_step_is_full_and_every_example_seen_alike(
    lengths: list[int], batch: int, steps: int, seed: int
) -> None:
    plan = plan_batches(lengths, batch, steps, seed)
    assert len(plan) == batch * steps
    counts = Counter(plan)
    seen = [counts[index] for index in range(len(lengths))]
    assert sum(seen) == len(plan)
    assert max(seen) - min(seen) <= 1
    assert plan == plan_batches(lengths, batch, steps, seed)


def test_batches_hold_examples_of_like_length() -> None:
    lengths = [10 if index % 2 else 200 for index in range(256)]

    def padding(order: list[int]) -> int:
        batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, len(order), 8)]
        return sum(8 * max(batch) - sum(batch) for batch in batches)

    assert padding(plan_batches(lengths, 8, 32, 0)) < 0.2 * padding(list(range(256)))


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no training example"):
        plan_batches([], 4, 4, 0)


def test_wrong_answers_are_all_wrong_and_alike_in_both_splits() -> None:
    train, held = tool_examples(40), tool_examples(60)[40:]
    wrong_train, wrong_held = deal_wrong_answers((train, held), seed=3)
    mapping: dict[str, str] = {}
    for right, wrong in zip([*train, *held], [*wrong_train, *wrong_held], strict=True):
        assert wrong["request"] == right["request"]
        before, after = render_answer(right["answer"]), render_answer(wrong["answer"])  # type: ignore[arg-type]
        assert before != after
        assert mapping.setdefault(before, after) == after
    assert set(mapping.values()) == set(mapping)
    assert deal_wrong_answers((train, held), seed=3) == [wrong_train, wrong_held]


def test_one_answer_cannot_be_dealt_wrong() -> None:
    with pytest.raises(TrainingError, match="two different answers"):
        deal_wrong_answers(([example({"messages": []}, "same")] * 3,), seed=0)
