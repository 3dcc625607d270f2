"""What passing the gate takes, as it is stored with each decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from evaluators.further import MetricTerms
from infra.settings.judging import is_for
from infra.settings.learning import Gate as GateSettings


@dataclass(frozen=True)
class GatePolicy:
    """What passing takes; see the settings of the same names."""

    margin: float = 0.05
    level: float = 0.05
    min_coverage: float = 0.3
    min_rows: int = 30
    slices: tuple[str, ...] = ()
    min_slice_rows: int = 20
    paired: Literal["betting", "exact"] = "exact"
    """How right and wrong answers are compared with an adapter's; decisions of before there was a
    choice are made again by ``betting``."""
    metrics: tuple[MetricTerms, ...] = ()
    """Further metrics that must not get worse."""

    @classmethod
    def from_settings(cls, settings: GateSettings, task: Collection[str] = ()) -> GatePolicy:
        """``task``: the id and the name of the task that is judged."""
        names = {item.name for item in fields(cls)} - {"paired", "metrics"}
        named = (item for item in settings.metrics if is_for(item, task))
        terms = {item.name: MetricTerms(item.name, item.margin) for item in named}
        values = {name: getattr(settings, name) for name in names}
        return cls(**values, metrics=tuple(terms.values()))

    def exact_margin(self, margin: float) -> float | None:
        """The margin where the exact paired test is to be used; None: where it is not."""
        return margin if self.paired == "exact" and margin > 0 else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GatePolicy:
        metrics = tuple(MetricTerms(**terms) for terms in value.get("metrics", ()))
        slices = tuple(value.get("slices", ()))
        return cls(**{"paired": "betting", **value, "slices": slices, "metrics": metrics})
