"""Sections of the night: taking logs in, finding tasks, training, judging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from infra.settings.bounds import MAX_DRAWN, Clock, RayAddress, Seconds, Section, Share, Text
from infra.settings.judging import GateMetric, ScorerUse

SLICE = r"^(tool|length|tenant|language)(=.+)?$"
_TOGETHER = (("ray", "auto"), ("ray", "peft"))
"""Executor and backend that train one adapter in several processes."""


class LogSource(Section):
    """Another system's logs, taken in before our own."""

    format: Literal[
        "auto", "flywheel", "langfuse", "langsmith", "litellm", "nightschool", "openai", "otel"
    ] = Field("auto", description="What wrote them; auto: each row by its marks")
    location: Text = Field(description="A file, a folder, or s3://bucket/prefix")
    tenant: str = Field(
        "default", min_length=1, max_length=200, description="Whose calls these are"
    )


class Ingest(Section):
    """Taking logs in."""

    claim_seconds: Seconds = Field(600, description="A claimed object is free again after this")
    max_line_bytes: int = Field(
        16 << 20, ge=1 << 10, le=256 << 20, description="A longer line goes to quarantine"
    )
    rows_per_file: int = Field(5000, ge=1, le=1_000_000, description="Calls per Parquet file")
    near_duplicate_similarity: float = Field(
        0.95,
        gt=0,
        le=1,
        description="MinHash Jaccard similarity from which two calls count as copies",
    )
    executor: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="Who reads our logs. local: this process; ray: Ray Data, on `training.ray_address` or "
        "a Ray started here; auto: ray where that address, an s3:// store and ray as `training.executor` "
        "are set",
    )
    sources: tuple[LogSource, ...] = Field(
        (),
        max_length=100,
        description="Other systems' logs: `{format, location, tenant}` each, read as by `import`",
    )


class Discovery(Section):
    """Finding the tasks in the logs."""

    min_calls: int = Field(
        40, ge=2, le=1_000_000, description="Calls before a cluster becomes a candidate"
    )
    radius: float = Field(0.75, gt=0, le=2, description="Cosine distance that still belongs")
    max_calls: int = Field(
        50_000, ge=100, le=10_000_000, description="Newest calls looked at in one night"
    )
    share_between_tenants: bool = Field(
        False,
        description="True: like calls of several tenants are one task, and one adapter answers them "
        "all; False: no tenant's calls are learned from for another",
    )
    dimensions: int = Field(512, ge=32, le=8192, description="Length of a prompt's embedding")


class Training(Section):
    """Training adapters."""

    backend: Literal["auto", "peft", "unsloth"] = Field(
        "auto", description="auto: unsloth where there is a GPU, peft elsewhere"
    )
    executor: Literal["ray", "local"] = Field(
        "ray", description="ray: tasks on a Ray cluster; local: processes of this machine"
    )
    ray_address: RayAddress | None = Field(
        None,
        description="`ray://host:10001` from outside the cluster, `host:port` or `auto` on a machine "
        "of it; None starts a local Ray",
    )
    workers: int = Field(2, ge=1, le=1000, description="Runs at the same time")
    cpus_per_run: float = Field(1, gt=0, le=256, description="CPU cores reserved for a run")
    gpus_per_run: float = Field(
        0, ge=0, le=64, description="GPUs reserved for a run; above 0 it never falls back to CPU"
    )
    processes_per_run: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that train one adapter together, by Ray Train, each with its CPUs and "
        "GPUs: for a base that one GPU trains too slowly. Needs executor ray, the peft backend and, "
        "on several machines, `runs` on a shared disk",
    )
    store_checkpoints: bool = Field(
        True, description="Keep checkpoints in object storage too, for another worker to go on from"
    )
    runs: Path = Field(Path("var/runs"), description="Scratch folders of training runs")
    rank: int = Field(16, ge=1, le=256, description="LoRA rank; alpha is twice that")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak of the cosine schedule")
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Examples per optimizer step; None: 8 to 32, by their number",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Of the LoRA inputs")
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank), for high ranks; served as plain LoRA"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw",
        description="adamw_8bit takes a quarter of the memory and needs the package bitsandbytes",
    )
    load_in_4bit: bool = Field(
        False,
        description="Hold the base in 4 bit while training: for the unsloth backend; it is served "
        "as it is",
    )
    batching: Literal["grouped", "packed", "shuffled"] = Field(
        "grouped",
        description="Examples of like length together; in one row without padding; neither",
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="Validations without a better loss before a run ends early"
    )
    old_share: float = Field(
        0.0, ge=0, lt=1, description="Share of examples from the task's previous data set"
    )
    learning_curve: bool = Field(
        False,
        description="Two short runs on 10 % and 30 % of the examples before the first run of a data "
        "set; the next plan says whether more data would help",
    )
    resample_calls: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Calls to the teacher per data set to settle prompts that it answered in several "
        "ways; 0: trained as logged",
    )
    resample_answers: int = Field(
        3, ge=2, le=16, description="Calls per such prompt; what more than half say is the label"
    )
    candidates: int = Field(
        1, ge=1, le=32, description="Settings that compete per task, by successive halving; 1: none"
    )
    candidate_ranks: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (), max_length=8, description="LoRA ranks that compete, besides `rank`"
    )
    candidate_learning_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), max_length=8, description="Learning rates that compete, besides `learning_rate`"
    )
    candidate_bases: tuple[Text, ...] = Field(
        (),
        max_length=4,
        description="Base models that compete with `engine.base_model`, named as it is. What is "
        "trained to its end is on the base that the engine serves; the next plan says which would do better",
    )
    max_steps: int = Field(400, ge=1, le=1_000_000, description="Optimizer steps of a run at most")
    epochs: float = Field(3, gt=0, le=100, description="Times that a run sees each example")
    max_sequence_tokens: int | None = Field(
        None,
        ge=16,
        le=1 << 20,
        description="A longer example is left out, never cut; None: from the data's lengths",
    )
    last_layers: int | None = Field(
        None, ge=1, le=1000, description="Adapt only the last N layers; None: all"
    )
    checkpoint_steps: int = Field(
        25, ge=1, le=100_000, description="Steps between checkpoints, each with a validation loss"
    )
    max_examples: int = Field(
        5000, ge=1, le=10_000_000, description="Newest examples kept in a data set"
    )
    min_examples: int = Field(
        60, ge=4, le=10_000_000, description="Fewer training examples: not trained"
    )
    max_retries: int = Field(
        3, ge=0, le=20, description="Further processes for a run that was killed or got stuck"
    )
    seed: int = Field(7, ge=0, le=2**32 - 1, description="Decides order and initial weights")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.processes_per_run > 1 and (self.executor, self.backend) not in _TOGETHER:
            raise ValueError("processes_per_run above 1 needs executor ray and not backend unsloth")
        if self.load_in_4bit and self.backend == "peft":
            raise ValueError("load_in_4bit needs the unsloth backend: set backend to unsloth")
        return self


class Night(Section):
    """When to learn, and how much."""

    cron: str = Field(
        "0 1 * * *",
        pattern=r"^\S+( \S+){4}$",
        max_length=100,
        description="Schedule of the night flow: minute, hour, day, month, weekday",
    )
    timezone: Text = Field("UTC", description="Time zone of schedule and window, e.g. Europe/Paris")
    start: Clock = Field("22:00", description="NIGHT_START, HH:MM in the time zone")
    end: Clock = Field("06:00", description="NIGHT_END, HH:MM; before the start: the next day")
    max_tasks: int = Field(8, ge=1, le=1000, description="Adapters trained in one night at most")
    seconds_per_step: float = Field(
        2.0, gt=0, le=86400, description="First estimate of a training step; then as measured"
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, OSError, ValueError):
            raise ValueError("no time zone of that name: write one like Europe/Paris") from None
        return value


class Gate(Section):
    """Non-inferiority of what the caller gets (adapter plus escalation)."""

    margin: float = Field(0.05, ge=0, le=0.5, description="Tolerated loss against the incumbent")
    level: float = Field(
        0.05, gt=0, lt=0.5, description="One-sided error rate, over all tries at one incumbent"
    )
    risk: float = Field(0.05, gt=0, lt=0.5, description="Tolerated error among shown answers")
    drawn_answers: int = Field(
        0,
        ge=0,
        le=MAX_DRAWN,
        description="Answers drawn beside each for one confidence more, the share that says the same; "
        "where it shows most, serving draws as many for every call "
        "([decision 40](../decisions/0040-answers-that-agree.md)). 0: not offered",
    )
    min_coverage: Share = Field(0.3, description="Below this the adapter is not worth it")
    min_rows: int = Field(
        30, ge=5, le=100_000, description="Test examples below which the verdict is inconclusive"
    )
    max_test_rows: int = Field(
        300, ge=5, le=100_000, description="Test and validation examples asked at most, each"
    )
    max_base_rows: int = Field(
        32,
        ge=1,
        le=100_000,
        description="Test examples also asked of the base model, which is slow",
    )
    earlier_sets: int = Field(
        2, ge=0, le=20, description="Earlier data sets whose test examples must not be unlearned"
    )
    max_earlier_rows: int = Field(
        40, ge=1, le=100_000, description="Test examples asked of each earlier data set"
    )
    slices: tuple[Annotated[str, Field(pattern=SLICE, max_length=200)], ...] = Field(
        ("tool", "length", "tenant"),
        max_length=50,
        description="May not regress: `tool` is each tool with enough rows, `tool=send` this one, "
        "which must have enough",
    )
    engine_tolerance: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Nats that a token's log-probability may differ between engine and trainer, on "
        "average; beyond, an alarm and no pass. 4-bit training may need more",
    )
    min_slice_rows: int = Field(
        20, ge=1, le=100_000, description="Test examples below which nothing is said of a slice"
    )
    metrics: tuple[GateMetric, ...] = Field(
        (),
        max_length=20,
        description="Further metrics that must not get worse: `{name, margin, tasks}` each",
    )
    scorers: tuple[ScorerUse, ...] = Field(
        (),
        max_length=20,
        description="Scorers of installed packages: `{name, use, tasks, options, timeout_seconds}` "
        "each ([decision 32](../decisions/0032-further-metrics.md))",
    )

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        for items in (self.metrics, self.scorers):
            seen: set[tuple[str, str]] = set()
            for item in items:
                for task in item.tasks or ("",):
                    if (item.name, task) in seen:
                        raise ValueError(f"{item.name} stands twice for the same task")
                    seen.add((item.name, task))
        return self
