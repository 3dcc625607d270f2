"""Sections of judging beyond the built-in scores: scorers of one's own, and a large model as judge."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from infra.settings.bounds import HttpUrl, Seconds, Section, Share, Text

MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
JUDGE = "judge"
"""The metric that the judge gives."""
TASKS = "Ids or names of the tasks it is for; empty: all"


class ScorerUse(Section):
    """A scorer of an installed package, for some tasks or for all."""

    name: MetricName = Field(description="The metric that it gives")
    use: Text = Field(description="Entry point of the group `nightschool.scorers`")
    tasks: tuple[Text, ...] = Field((), max_length=1000, description=TASKS)
    options: dict[str, Any] = Field({}, max_length=100, description="What it is made with")
    timeout_seconds: Seconds = Field(10, description="For one answer; a later score is none")

    @model_validator(mode="after")
    def _not_the_judge(self) -> Self:
        if self.name == JUDGE:
            raise ValueError(
                "a scorer of one's own cannot be called judge: that is the large model"
            )
        return self


class GateMetric(Section):
    """A further metric that must not get worse."""

    name: MetricName = Field(description="`judge`, a scorer's name, or a stage such as `fields`")
    margin: float = Field(0.05, ge=0, le=0.5, description="Tolerated loss against the incumbent")
    tasks: tuple[Text, ...] = Field((), max_length=1000, description=TASKS)


def is_for(item: ScorerUse | GateMetric, task: Collection[str]) -> bool:
    """``task``: the id and the name of a task."""
    return not item.tasks or bool(set(item.tasks) & set(task))


class Judge(Section):
    """A large model that judges answers, behind any OpenAI-compatible endpoint. Off without a model."""

    url: HttpUrl = Field("http://127.0.0.1:8301/v1", description="Base URL ending in /v1")
    model: Text | None = Field(None, description="Who judges; None: nobody")
    api_key: SecretStr | None = Field(None, description="Sent along; never logged")
    mode: Literal["rubric", "pairwise"] = Field(
        "pairwise",
        description="pairwise: which of two answers is better, asked in both orders; rubric: each "
        "answer scored by the criteria",
    )
    criteria: dict[MetricName, Text] = Field(
        {
            "correct": "What it says or does is right, and nothing that was asked is left out.",
            "form": "It has the form that the request asks for, and nothing beside it.",
        },
        min_length=1,
        max_length=12,
        description="Name and meaning of each criterion",
    )
    scale: int = Field(5, ge=2, le=100, description="Rubric: scores are whole numbers from 1 to it")
    cut: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Rubric: mean score, 0 to 1, from which an answer is good; with enough labelled "
        "rows the cut that agrees best with people",
    )
    min_labelled: int = Field(
        30,
        ge=0,
        le=10_000,
        description="Rows that people labelled below which its metric lets nothing pass; 0: trusted "
        "without any",
    )
    max_labelled: int = Field(
        60, ge=0, le=10_000, description="Labelled rows that it is asked about per adapter at most"
    )
    min_kappa: float = Field(
        0.2, ge=-1, lt=1, description="Least lower bound of its agreement with people (kappa)"
    )
    max_rows: int = Field(
        100, ge=1, le=100_000, description="Test rows that it is asked about per adapter at most"
    )
    calls_per_night: int = Field(1000, ge=0, le=10_000_000, description="Over all tasks")
    money_per_night: float = Field(
        5.0, ge=0, le=1e6, description="Over all tasks, in the currency of the costs below"
    )
    look_calls_per_day: int = Field(
        500, ge=0, le=10_000_000, description="Of `nightschool judge`, over all adapters"
    )
    look_money_per_day: float = Field(
        2.0, ge=0, le=1e6, description="Of `nightschool judge`, over all adapters"
    )
    rollout_share: Share = Field(
        0.0,
        description="Share of a canary's answers unlike the teacher's that it is asked about while the "
        "rollout runs; its word only widens what is known of them. 0: none",
    )
    calls_per_day: int = Field(200, ge=0, le=10_000_000, description="Of rollouts, over all tasks")
    money_per_day: float = Field(1.0, ge=0, le=1e6, description="Of rollouts, over all tasks")
    cost_per_million_input_tokens: float = Field(5.0, ge=0, le=1e6, description="Its price")
    cost_per_million_output_tokens: float = Field(15.0, ge=0, le=1e6, description="Its price")
    timeout_seconds: Seconds = Field(60, description="Longest wait for a verdict")
    concurrency: int = Field(4, ge=1, le=1000, description="Questions in flight at once")
    retries: int = Field(2, ge=0, le=10, description="Where it was away (no connection, 429, 5xx)")
    max_tokens: int = Field(300, ge=16, le=100_000, description="Of a verdict")
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the endpoint calls that bound"
    )
    temperature: float | None = Field(0.0, ge=0, le=2, description="None: not sent along")
    answer_format: Literal["json_object", "text"] = Field(
        "json_object", description="text: where the endpoint knows no `response_format`"
    )
    max_characters: int = Field(
        20_000,
        ge=100,
        le=10_000_000,
        description="A longer question is not asked: it counts as failed",
    )
