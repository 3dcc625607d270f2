"""Every setting of the product: its default, its bounds and what it means.

Sources, strongest first: ``NIGHTSCHOOL_<SECTION>__<FIELD>`` in the environment, then the TOML file
(``nightschool.toml``, or the path in ``NIGHTSCHOOL_CONFIG``), then the defaults below. See
``sources.py`` for the loading and ``nightschool config`` for the effective values and their origin.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from infra.settings.bounds import Section
from infra.settings.judging import JUDGE, Judge
from infra.settings.learning import Discovery, Gate, Ingest, Night, Training
from infra.settings.operating import (
    Hooks,
    Notify,
    PrefectServer,
    RegistryApi,
    Retention,
    Rollout,
    Watch,
)
from infra.settings.serving import (
    Anonymizer,
    Database,
    Engine,
    Gateway,
    Storage,
    Teacher,
    Telemetry,
)


class Settings(Section):
    """The whole configuration. Frozen: a changed setting is a new object."""

    storage: Storage = Storage()
    database: Database = Database()
    teacher: Teacher = Teacher()
    gateway: Gateway = Gateway()
    engine: Engine = Engine()
    telemetry: Telemetry = Telemetry()
    anonymizer: Anonymizer = Anonymizer()
    ingest: Ingest = Ingest()
    discovery: Discovery = Discovery()
    training: Training = Training()
    night: Night = Night()
    gate: Gate = Gate()
    judge: Judge = Judge()
    rollout: Rollout = Rollout()
    watch: Watch = Watch()
    retention: Retention = Retention()
    registry: RegistryApi = RegistryApi()
    notify: Notify = Notify()
    hooks: Hooks = Hooks()
    prefect: PrefectServer = PrefectServer()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        """What one section promises another must be able to keep."""
        highest = max(self.training.rank, *self.training.candidate_ranks, 0)
        if highest > self.engine.max_rank:
            raise ValueError(
                f"training.rank ({highest}) is above engine.max_rank "
                f"({self.engine.max_rank}): what is trained could never be served"
            )
        if self.rollout.tend_seconds >= self.gateway.dead_man_seconds:
            raise ValueError(
                f"rollout.tend_seconds ({self.rollout.tend_seconds:g}) is not below "
                f"gateway.dead_man_seconds ({self.gateway.dead_man_seconds:g}): every canary would "
                "be suspended between two looks"
            )
        if self.judge.model is None and any(item.name == JUDGE for item in self.gate.metrics):
            raise ValueError(
                "gate.metrics names the judge, but judge.model is not set: nothing could ever pass"
            )
        return self
