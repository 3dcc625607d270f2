"""Every setting says what it means and how far it may go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

import infra.settings.page
from infra.settings.model import Settings
from infra.settings.page import constraints, page


def every_field() -> Iterator[tuple[str, FieldInfo]]:
    for section, known in Settings.model_fields.items():
        kind = known.annotation
        assert isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, field in kind.model_fields.items():
            yield f"{section}.{name}", field


FIELDS = dict(every_field())


def kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of: int for ``int | None``."""
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*map(kinds, inner))


NUMBERS = [key for key, field in FIELDS.items() if kinds(field.annotation) & {int, float}]


def limit(key: str, *names: str) -> float | None:
    found = [
        value
        for item in constraints(FIELDS[key])
        for name in names
        if (value := getattr(item, name, None)) is not None
    ]
    return float(found[0]) if found else None


def settings_with(key: str, value: Any) -> Settings:
    section, _, name = key.partition(".")
    return Settings.model_validate({section: {name: value}})


def test_every_field_says_what_it_means():
    missing = [key for key, field in FIELDS.items() if not (field.description or "").strip()]
    assert missing == []
    assert [name for name, field in Settings.model_fields.items() if not _doc(field)] == []


def _doc(section: FieldInfo) -> str:
    return getattr(section.annotation, "__doc__", None) or ""


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_both_bounds_and_is_refused_beyond_them(key: str):
    low, high = limit(key, "ge", "gt"), limit(key, "le", "lt")
    assert low is not None, f"{key} has no lower bound"
    assert high is not None, f"{key} has no upper bound"
    assert low < high
    many = kinds(FIELDS[key].annotation) & {Ellipsis}
    for beyond in (math.floor(low) - 1, math.ceil(high) + 1, math.nan):
        with pytest.raises(ValidationError):
            settings_with(key, [beyond] if many else beyond)


def test_the_numbers_are_found():
    """Guards the test above against looking at nothing."""
    assert {"gateway.port", "training.last_layers", "rollout.steps", "gate.margin"} <= set(NUMBERS)
    assert len(NUMBERS) > 60


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("night.timezone", "Mars/Olympus", "no time zone of that name"),
        ("night.timezone", "../../etc/passwd", "no time zone of that name"),
        ("night.start", "25:00", "pattern"),
        ("night.end", "6:00", "pattern"),
        ("night.cron", "every night", "pattern"),
        ("rollout.steps", [], "at least 1 item"),
        ("rollout.steps", [0.5, 0.1], "rise strictly"),
        ("rollout.steps", [0.1, 0.1], "rise strictly"),
        ("rollout.steps", [n / 100 for n in range(1, 30)], "at most 20 items"),
        ("rollout.step_sessions", 5000, "no rollout could ever end well"),
        ("teacher.url", "localhost:8301", "pattern"),
        ("teacher.url", "", "pattern"),
        ("engine.url", "file:///etc/passwd", "pattern"),
        ("prefect.api_url", "http://", "pattern"),
        ("storage.url", "", "at least 1 character"),
        ("gateway.host", "x" * 300, "at most 253 characters"),
        ("anonymizer.default_region", "germany", "pattern"),
        ("anonymizer.keep_kinds", ["EMAIL"] * 101, "at most 100 items"),
        ("training.backend", "jax", "auto"),
        *(
            ("training.ray_address", address, "write ray://host:10001")
            for address in ("ray-head", "ray://ray-head", "http://ray-head:10001", "ray://:10001")
        ),
        *(
            ("training.ray_address", address, "write ray://host:10001")
            for address in ("ray-head:gcs", "ray-head:0", "ray-head:70000", "[::1:1", "local")
        ),
        ("training.ray_address", "ray://ray head:10001", "pattern"),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: Any, told: str):
    with pytest.raises(ValidationError, match=told):
        settings_with(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("night.timezone", "Europe/Berlin"),
        ("night.start", "00:00"),
        ("night.end", "23:59"),
        ("night.cron", "*/5 1-3 * * MON"),
        ("rollout.steps", [1.0]),
        ("engine.url", "https://engine.internal:8443"),
        ("storage.url", "s3://bucket/prefix"),
        ("training.last_layers", None),
        ("training.ray_address", "ray://ray-head.internal:10001"),
        ("training.ray_address", "10.0.0.7:6379"),
        ("training.ray_address", "[fd00::7]:6379"),
        ("training.ray_address", "auto"),
    ],
)
def test_what_makes_sense_is_taken(key: str, value: Any):
    section, _, name = key.partition(".")
    found = getattr(getattr(settings_with(key, value), section), name)
    assert found == (tuple(value) if isinstance(value, list) else value)


def test_the_stored_page_is_the_present_one():
    stored = Path(infra.settings.page.__file__).with_name("README.md").read_text()
    assert stored == page(), "run python -m infra.settings.page > infra/settings/README.md"
    assert "`night.seconds_per_step` | `2.0` | > 0, ≤ 86400 |" in stored
    assert "| `embedded`, `vllm` |" in stored


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"rank": 64}}, "could never be served"),
        ({"rollout": {"tend_seconds": 900}}, "suspended between two looks"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings.model_validate(changes)
