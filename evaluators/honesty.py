"""What a score does not say of itself: how much of the test was in training, repeats itself, or is the
teacher marking its own work. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Honesty:
    """Counts over the rows of a test."""

    rows: int
    seen_in_training: int
    """Rows whose prompt is in the training data too."""
    distinct_prompts: int
    repeated: int
    """Rows that are another's prompt and label once more: they add no evidence."""
    contradicted: int
    """Rows whose prompt has another label elsewhere in the test: nobody gets them all right."""
    independent_labels: int
    """Rows whose label is a person's, not the teacher's."""
    unseen_prompts: int | None = None
    """Different prompts that are not in the training data; None: not counted when it was decided."""

    def to_dict(self) -> dict[str, int]:
        # Without what was not counted, so that what was stored then keeps its digest.
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def telling_prompts(self) -> int:
        """How many prompts show something: what was learned by heart and what is repeated does not."""
        return self.distinct_prompts if self.unseen_prompts is None else self.unseen_prompts

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Honesty:
        return cls(**value)

    def notes(self) -> list[str]:
        """What a reader of the scores should know, in plain words."""
        found = []
        if not self.independent_labels:
            found.append(
                "every label is the teacher's own: this measures agreement with the teacher, not "
                "whether it is right"
            )
        for count, said in (
            (self.seen_in_training, "have their prompt in the training data"),
            (self.repeated, "repeat another's prompt and label"),
            (self.contradicted, "have a prompt that is labelled otherwise elsewhere"),
        ):
            if count:
                found.append(f"{count} of {self.rows} test rows {said}")
        return found


def check_honesty(
    prompts: Sequence[str],
    labels: Sequence[str],
    independent: Sequence[bool],
    trained: Collection[str],
) -> Honesty:
    """Count what the test's rows have in common with training and with each other.

    Args:
        prompts, labels: a key of each row's prompt and label; equal keys, equal content.
        independent: whether the row's label is a person's.
        trained: keys of the training prompts.
    """
    said: defaultdict[str, set[str]] = defaultdict(set)
    for prompt, label in zip(prompts, labels, strict=True):
        said[prompt].add(label)
    known = set(trained)
    return Honesty(
        rows=len(prompts),
        seen_in_training=sum(prompt in known for prompt in prompts),
        distinct_prompts=len(said),
        repeated=len(prompts) - sum(map(len, said.values())),
        contradicted=sum(len(said[prompt]) > 1 for prompt in prompts),
        independent_labels=sum(independent),
        unseen_prompts=len(said.keys() - known),
    )
