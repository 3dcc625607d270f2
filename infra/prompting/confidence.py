"""How sure a small model is of an answer: from the log-probabilities of the tokens it said, or from
what it says when it is asked again.

Each score is higher for surer; which one an adapter is judged and served by is written in its
manifest. The judge, the gateway and the engine's stream all compute them here. Of one answer alone:

* ``mean``: mean over all tokens, length-normalized (Malinin & Gales, "Uncertainty estimation in
  autoregressive structured prediction", ICLR 2021).
* ``sequence``: their sum, the log-probability of the whole answer.
* ``least_token``: the least sure of all tokens.
* ``least_value``: the least sure token among those that say a value: in JSON, which tool calls are,
  everything but keys, braces and commas; in plain text every token.

Of further answers drawn at temperature 1:

* ``agreement_K``: the share of K of them that say the same (self-consistency; Wang et al.,
  "Self-consistency improves chain of thought reasoning in language models", ICLR 2023), 0 to 1.
  It costs K answers more for each call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from infra.prompting.answers import ParsedAnswer
from infra.prompting.values import same_answer
from infra.settings.bounds import MAX_DRAWN

ScoreName = Literal["mean", "sequence", "least_token", "least_value"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
MEAN: ScoreName = "mean"

_AGREEMENT = re.compile(r"agreement_([1-9][0-9]?)")
_JSON_STARTS = ("{", "[")
# Strings, then numbers and words; a string before a colon is a key.
_LEAF = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[-+.\w]+')


def confidence_of(
    name: str, text: str, tokens: Sequence[str], log_probabilities: Sequence[float]
) -> float:
    """The score called ``name`` of one answer; -inf where there is nothing to go by.

    A name that this release does not know gives -inf too: a threshold for it is never reached.

    Args:
        text: the generated text without the stop token.
        tokens: the text of each token, the stop token with them; none where the engine tells none.
        log_probabilities: natural, one per token, at most 0.
    """
    score = _SCORES.get(name)
    if score is None or not log_probabilities:
        return -math.inf
    return score(text, tokens, log_probabilities)


def all_confidences(
    text: str, tokens: Sequence[str], log_probabilities: Sequence[float]
) -> dict[str, float]:
    """Every score of one answer, by its name."""
    return {name: confidence_of(name, text, tokens, log_probabilities) for name in SCORES}


def agreement_name(drawn: int) -> str:
    """The name of the score of so many drawn answers."""
    return f"agreement_{drawn}"


def answers_drawn(name: str) -> int:
    """How many answers the score called ``name`` takes beside the one that is shown; mostly 0."""
    found = _AGREEMENT.fullmatch(name)
    count = int(found.group(1)) if found else 0
    return count if count <= MAX_DRAWN else 0


def agreement(answer: ParsedAnswer, drawn: Sequence[ParsedAnswer]) -> float:
    """Share of the drawn answers that are sound and say the same as the answer."""
    same = sum(
        other.checks.passed and same_answer(answer.message, other.message) for other in drawn
    )
    return same / len(drawn)


def mean_log_probability(log_probabilities: Sequence[float]) -> float:
    """Length-normalized log-probability of the answer, in (-inf, 0]; -inf when there are no tokens."""
    if not log_probabilities:
        return -math.inf
    return sum(log_probabilities) / len(log_probabilities)


def _least_value(text: str, tokens: Sequence[str], log_probabilities: Sequence[float]) -> float:
    """Tokens that cannot be laid over the text (half characters, say) count whole: none is unsure
    enough to be overlooked, so the score can only be lower for it."""
    if len(tokens) != len(log_probabilities) or not text.lstrip().startswith(_JSON_STARTS):
        return min(log_probabilities)
    joined = "".join(tokens)
    if not joined.startswith(text):
        return min(log_probabilities)
    spans = _value_spans(text)
    if not spans:
        return min(log_probabilities)
    least, place, span = 0.0, 0, 0
    for token, value in zip(tokens, log_probabilities, strict=True):
        end = place + len(token)
        while span < len(spans) and spans[span][1] <= place:
            span += 1
        if span < len(spans) and spans[span][0] < end:
            least = min(least, value)
        place = end
    return least


def _value_spans(text: str) -> list[tuple[int, int]]:
    """Where the values of JSON text lie, closing quotes with them: there the value could have gone on."""
    return [match.span() for match in _LEAF.finditer(text) if match.group(2) is None]


_SCORES: Mapping[str, Callable[[str, Sequence[str], Sequence[float]], float]] = {
    "mean": lambda text, tokens, values: mean_log_probability(values),
    "sequence": lambda text, tokens, values: sum(values),
    "least_token": lambda text, tokens, values: min(values),
    "least_value": _least_value,
}
