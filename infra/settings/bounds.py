"""The kinds of value that settings have, with their bounds."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
LongSeconds = Annotated[float, Field(ge=0, le=20 * 366 * 86400)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Host = Annotated[str, Field(min_length=1, max_length=253)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s/]", max_length=1000)]
RAY_HERE = "auto"
"""The address of the Ray cluster that this machine is part of."""


def ray_place(address: str) -> tuple[str, int] | None:
    """Host and port of a Ray cluster's address; None of ``RAY_HERE``. Raises ValueError."""
    if address == RAY_HERE:
        return None
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.scheme in ("", "ray") and parts.hostname and parts.port and not parts.path:
            return parts.hostname, parts.port
    except ValueError:  # a port that is none, or half a bracket
        pass
    raise ValueError(
        "write ray://host:10001 from outside the cluster, host:port or auto on a machine of it"
    )


def _ray_address(value: str) -> str:
    ray_place(value)
    return value


RayAddress = Annotated[
    str, Field(min_length=1, max_length=1000, pattern=r"^\S+$"), AfterValidator(_ray_address)
]
OpenPath = Annotated[
    str, Field(pattern=r"^[A-Z]{3,7} (/[A-Za-z0-9_.:@~-]+)+(/\*)?$", max_length=200)
]
Clock = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
MAX_DRAWN = 16
"""Answers of the small model that may be drawn beside one."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
