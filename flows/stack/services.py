"""Which processes one machine runs, as data. Pure: settings in, list of services out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.settings.model import Settings

HEARTBEAT_SECONDS = 30
"""How often a flow run says that it lives; Prefect takes no less."""
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


@dataclass(frozen=True)
class Service:
    """One process of the stack."""

    name: str
    what: str
    """One phrase for the screen."""
    argv: tuple[str, ...]
    host: str | None = None
    port: int | None = None
    ready_url: str | None = None
    """Answers 200 once the service can be used."""
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 120
    after: str | None = None
    """Name of the service that must be ready before this one is started."""


def prefect_api_url(settings: Settings) -> str:
    server = settings.prefect
    return server.api_url or f"http://{server.host}:{server.port}/api"


def prefect_ui_url(settings: Settings) -> str:
    """Where people look at the server's pages, without a closing slash."""
    public = settings.prefect.public_url
    return (public or prefect_api_url(settings).removesuffix("/api")).rstrip("/")


def prefect_environment(settings: Settings) -> dict[str, str]:
    """What every process that talks to Prefect needs; explicit variables of the caller win."""
    defaults = {
        "PREFECT_API_URL": prefect_api_url(settings),
        "PREFECT_HOME": str(settings.prefect.home.absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # In memory, a server that is started again would end every run that holds a place of its
        # deployment: a night does not end with the server.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_CLI_COLORS": "false",
        "DO_NOT_TRACK": "1",
    }
    if settings.prefect.public_url:
        # Its pages ask the server by this address: people's browsers may reach no other.
        defaults["PREFECT_SERVER_UI_API_URL"] = f"{prefect_ui_url(settings)}/api"
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def addresses(settings: Settings) -> dict[str, str]:
    """Where each part can be asked whether it is well; for people and for `nightschool status`."""
    gateway, hooks, registry = settings.gateway, settings.hooks, settings.registry
    return {
        "prefect": f"{prefect_api_url(settings)}/health",
        **{
            "engine" if number == 1 else f"engine {number}": f"{url}/health"
            for number, url in enumerate(settings.engine.urls, 1)
        },
        "gateway": f"http://{gateway.host}:{gateway.port}/healthz",
        "hooks": f"http://{hooks.host}:{hooks.port}/healthz",
        "registry": f"http://{registry.host}:{registry.port}/healthz",
    }


def front_doors(settings: Settings) -> dict[str, str]:
    """What people do there, and the address that they need for it."""
    gateway, hooks, registry = settings.gateway, settings.hooks, settings.registry
    return {
        "agents call": f"http://{gateway.host}:{gateway.port}/v1",
        "people look": prefect_ui_url(settings),
        "senders post": f"http://{hooks.host}:{hooks.port}/hooks/retrain",
        "tools read": f"http://{registry.host}:{registry.port}/v1",
    }


def services(settings: Settings, *, base_model: Path | None) -> list[Service]:
    """The stack in starting order.

    Args:
        base_model: folder of the prepared base model; needed when the engine is the embedded one.
    """
    stack: list[Service] = []
    python = sys.executable
    if settings.prefect.api_url is None:
        server = settings.prefect
        stack.append(
            Service(
                "prefect",
                "Prefect server and its UI",
                (
                    *(python, "-m", "flows.stack.orchestrator_server", "server", "start"),
                    *("--host", server.host, "--port", str(server.port)),
                ),
                server.host,
                server.port,
                f"{prefect_api_url(settings)}/health",
                prefect_environment(settings),
            )
        )
    if settings.engine.kind == "embedded":
        if base_model is None:
            raise ValueError("the embedded engine needs the folder of a prepared base model")
        stack.append(_embedded_engine(settings, base_model, python))
    gateway = settings.gateway
    stack.append(
        Service(
            "gateway",
            "OpenAI-compatible gateway",
            (python, "-m", "serving.gateway"),
            gateway.host,
            gateway.port,
            f"http://{gateway.host}:{gateway.port}/healthz",
        )
    )
    hooks = settings.hooks
    stack.append(
        Service(
            "hooks",
            "signed webhooks in, reports out",
            (python, "-m", "flows.hooks"),
            hooks.host,
            hooks.port,
            f"http://{hooks.host}:{hooks.port}/healthz",
            prefect_environment(settings),
        )
    )
    registry = settings.registry
    stack.append(
        Service(
            "registry",
            "the registry over HTTP, for reading",
            (python, "-m", "serving.registry.reading"),
            registry.host,
            registry.port,
            f"http://{registry.host}:{registry.port}/healthz",
        )
    )
    stack.append(
        Service(
            "flows",
            "the flows, served to Prefect",
            (python, "-m", "flows.serve"),
            environment=prefect_environment(settings),
            after=None if settings.prefect.api_url else "prefect",
        )
    )
    return stack


def _embedded_engine(settings: Settings, base_model: Path, python: str) -> Service:
    engine = settings.engine
    host, _, port = engine.url.removeprefix("http://").partition(":")
    options = {
        "--model": str(base_model),
        "--served-model-name": engine.base_model,
        "--host": host,
        "--port": port,
        "--max-adapters": str(engine.slots),
        "--max-rank": str(engine.max_rank),
        "--threads": str(engine.threads),
        "--batch-size": str(engine.batch_size),
        "--batch-window-seconds": str(engine.batch_window_seconds),
        "--max-prompt-tokens": str(engine.max_prompt_tokens),
        "--max-answer-tokens": str(engine.max_answer_tokens),
        "--max-waiting": str(2 * settings.gateway.small_model_queue + engine.batch_size),
    }
    return Service(
        "engine",
        "embedded engine with the base model",
        (
            python,
            "-m",
            "serving.engines.embedded",
            *(word for pair in options.items() for word in pair),
        ),
        host,
        int(port),
        f"{engine.url}/health",
        {"HF_HUB_OFFLINE": "1"},
    )
