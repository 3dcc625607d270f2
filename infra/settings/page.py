"""The settings as a page of Markdown: ``python -m infra.settings.page > infra/settings/README.md``."""

from __future__ import annotations

import inspect

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infra.settings.model import Settings


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
    bounds = ", ".join(
        f"{sign} {getattr(item, attribute)}"
        for item in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, attribute, None) is not None
    )
    shown = "" if default is None else f"`{default}`"
    return f"| `{section}.{name}` | {shown} | {bounds} | {field.description or ''} |"


if __name__ == "__main__":
    print(page(), end="")
