"""The settings as a page of Markdown: ``python -m infra.settings.page > infra/settings/README.md``."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from infra.settings.model import Settings

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def page() -> str:
    """Every setting with its default, bounds and meaning; a test keeps the stored page complete."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m infra.settings.page`. `NIGHTSCHOOL_<SECTION>__<FIELD>` in the environment",
        "comes before the TOML file (`nightschool.toml`, or the one named by `NIGHTSCHOOL_CONFIG`),",
        "which comes before these defaults; `nightschool config` shows what is in force and why.",
    ]
    for section, known in Settings.model_fields.items():
        kind = known.annotation
        assert isinstance(kind, type) and issubclass(kind, BaseModel)
        title = (inspect.getdoc(kind) or "").splitlines()[:1] if kind.__doc__ else []
        lines += ["", f"## {section}", "", *title, *([""] if title else [])]
        lines += ["| setting | default | bounds | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(section, name, field) for name, field in kind.model_fields.items()]
    return "\n".join(lines) + "\n"


def _row(section: str, name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, SecretStr):
        # A default that stands in the source is no secret.
        default = default.get_secret_value()
    shown = "" if default is None else f"`{default}`"
    return f"| `{section}.{name}` | {shown} | {bounds(field)} | {field.description or ''} |"


def bounds(field: FieldInfo) -> str:
    """Limits of a number, or the choices there are; empty for anything else."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    return ", ".join(
        f"{sign} {getattr(item, attribute)}"
        for item in constraints(field)
        for attribute, sign in _SIGNS.items()
        if getattr(item, attribute, None) is not None
    )


def constraints(field: FieldInfo) -> list[Any]:
    """The field's constraints; those of an optional value or of items stand inside its type."""
    inner = [item for choice in get_args(field.annotation) for item in metadata_of(choice)]
    return [*field.metadata, *inner]


def metadata_of(annotation: Any) -> list[Any]:
    """The constraints of an ``Annotated`` type; none of any other type."""
    found: list[Any] = []
    for item in getattr(annotation, "__metadata__", ()):
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return found


if __name__ == "__main__":
    print(page(), end="")
