"""The configured engine, ready to be asked. Reads files; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from infra.artifacts.base import BaseShape, read_base_shape
from infra.artifacts.base_folder import local_base_folder
from infra.settings.serving import Engine as EngineSettings
from serving.engines.client import EngineClient
from serving.engines.fleet import Fleet


def open_engine(
    settings: EngineSettings,
    *,
    timeout_seconds: float = 60,
    loads: bool = True,
    trace_headers: Callable[[], Mapping[str, str]] = dict,
) -> Fleet:
    """All replicas of the configured engine as one.

    Args:
        timeout_seconds: for a completion when the call gives none.
        trace_headers: headers that continue the caller's trace, asked for at each request.
        loads: whether adapters will be loaded through it, which needs the base model's files.

    Raises:
        ArtifactError: the engine is vLLM and its base model's files are not on this machine.
    """
    base = needed_shape(settings) if loads else None
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return Fleet(
        [
            EngineClient(
                url,
                api_key=key,
                timeout_seconds=timeout_seconds,
                base=base,
                max_rank=settings.max_rank,
                trace_headers=trace_headers,
            )
            for url in settings.urls
        ],
        timeout_seconds=timeout_seconds,
    )


def needed_shape(settings: EngineSettings) -> BaseShape | None:
    """What adapters are checked against before the engine sees them. None for the embedded engine,
    which checks them against the very base that it runs.

    vLLM answers 200 to an adapter that is smaller than its model, and knows no fingerprints.
    """
    if settings.kind == "embedded":
        return None
    return read_base_shape(local_base_folder(settings))
