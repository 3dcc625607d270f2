"""The gateway's clients of other servers, traced where traces are wanted."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from infra.settings.model import Settings
from infra.settings.sources import SettingsError
from serving.engines.protocol import Engine
from serving.gateway.holdings import Holdings
from serving.gateway.small_calls import SmallCalls
from serving.gateway.upstream import Teacher
from serving.small_model import SmallModel

if TYPE_CHECKING:
    from serving.gateway.tracing import Tracing


def open_tracing(settings: Settings) -> Tracing | None:
    """None where ``[telemetry]`` names no endpoint; the libraries are not even loaded then.

    Raises:
        SettingsError: an endpoint is named and the libraries are not installed.
    """
    if settings.telemetry.endpoint is None:
        return None
    if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise SettingsError(
            "telemetry.endpoint is set, and OpenTelemetry is not installed: install the extra "
            "`telemetry`, or leave the endpoint out"
        )
    from serving.gateway.tracing import Tracing

    return Tracing(settings.telemetry, release())


def make_teacher(
    settings: Settings, tracing: Tracing | None, beside: Teacher | None = None
) -> Teacher:
    """Args: beside: see ``Teacher``."""
    if tracing is None:
        return Teacher(settings.teacher, beside=beside)
    from serving.gateway.tracing import TracedTeacher

    made = TracedTeacher(settings.teacher, beside=beside)
    made.tracing = tracing
    return made


def make_small_calls(
    engine: Engine, holdings: Holdings, settings: Settings, tracing: Tracing | None
) -> SmallCalls:
    if tracing is None:
        return SmallCalls(SmallModel(engine), holdings, settings)
    from serving.gateway.tracing import TracedSmallCalls

    made = TracedSmallCalls(SmallModel(engine), holdings, settings)
    made.tracing = tracing
    return made


def release() -> str:
    """This product's version."""
    try:
        return version("nightschool")
    except PackageNotFoundError:
        return "0"
