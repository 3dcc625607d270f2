"""The gateways that are measured side by side, each a process on one core before the same teacher."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.support.programs import Program, accepts, gateway, serves
from tests.contracts.servers import free_port

PEERS = Path(os.environ.get("GATEWAY_PEERS", ".venv-peers"))
MODEL = "big"


@dataclass(frozen=True)
class Target:
    """Somebody who passes chat completions on.

    Args:
        path: of chat completions.
        model: what the caller calls the teacher.
        note: what of its work is switched on.
    """

    program: Program
    port: int
    path: str
    note: str
    model: str = MODEL


Make = Callable[[Path, int], Target]


class Missing(Exception):
    """A peer that is not to be had here: why, and how to get it."""


def ours(folder: Path, teacher: int) -> Target:
    """Night School, as it ships: anonymizing, logging to a directory, with tasks to route to."""
    settings: Mapping[str, Any] = {
        "teacher.url": f"http://127.0.0.1:{teacher}/v1",
        # What is measured is the gateway, not how many calls it lets through to the teacher.
        "teacher.max_concurrency": 1000,
        "storage.url": folder / "objects",
        "database.url": f"sqlite:///{folder}/nightschool.db",
    }
    program = gateway("nightschool", folder, settings, {"OMP_NUM_THREADS": "1"})
    port = int(program.url.rpartition(":")[2])
    return Target(program, port, "/v1/chat/completions", "logging and anonymization on")


def litellm(folder: Path, teacher: int) -> Target:
    """LiteLLM's proxy with one worker and nothing that it need not do."""
    python = _peer("litellm")
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        f"  - model_name: {MODEL}\n"
        "    litellm_params:\n"
        f"      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{teacher}/v1\n"
        "      api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
    )
    port = free_port()
    command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]
    program = Program(
        "litellm",
        command,
        logs=folder,
        answers=lambda: serves(f"http://127.0.0.1:{port}/health/liveliness"),
        environment={
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        },
    )
    return Target(program, port, "/v1/chat/completions", "no logging, one worker")


def tensorzero(folder: Path, teacher: int) -> Target:
    """TensorZero's gateway, as its package embeds it, without its database."""
    python = _peer("tensorzero")
    config = folder / "tensorzero.toml"
    config.write_text(
        "[gateway]\nobservability.enabled = false\n"
        "disable_pseudonymous_usage_analytics = true\n"
        f'[models.{MODEL}]\nrouting = ["mock"]\n'
        f'[models.{MODEL}.providers.mock]\ntype = "openai"\nmodel_name = "{MODEL}"\n'
        f'api_base = "http://127.0.0.1:{teacher}/v1/"\napi_key_location = "none"\n'
    )
    where = folder / "tensorzero.url"
    script = (
        "import openai, pathlib, tensorzero, threading\n"
        "client = openai.OpenAI(api_key='none')\n"
        f"tensorzero.patch_openai_client(client, config_file={str(config)!r}, async_setup=False)\n"
        f"pathlib.Path({str(where)!r}).write_text(str(client.base_url))\n"
        "threading.Event().wait()\n"
    )
    program = Program(
        "tensorzero",
        [str(python), "-W", "ignore", "-c", script],
        logs=folder,
        answers=lambda: where.exists() and bool(where.read_text()),
        environment={"RUST_LOG": "error"},
    )
    program.start()
    port = int(where.read_text().rpartition(":")[2].partition("/")[0])
    model = f"tensorzero::model_name::{MODEL}"
    return Target(program, port, "/openai/v1/chat/completions", "no logging", model)


def nginx(folder: Path, teacher: int) -> Target:
    """A bare reverse proxy: the floor."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise Missing("nginx is not installed (package nginx-light)")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;\n"
        "events { worker_connections 2048; }\n"
        "http { access_log off; client_body_buffer_size 1m;\n"
        f"  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"  upstream teacher {{ server 127.0.0.1:{teacher}; keepalive 512;\n"
        "    keepalive_requests 1000000000; }\n"
        f"  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000000;\n"
        "    location / { proxy_pass http://teacher; proxy_http_version 1.1;\n"
        '      proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    program = Program(
        "nginx",
        [binary, "-p", str(folder), "-c", str(config)],
        logs=folder,
        answers=lambda: accepts(port),
    )
    return Target(program, port, "/v1/chat/completions", "a bare reverse proxy")


def quick_teacher(folder: Path) -> Target:
    port = free_port()
    program = Program(
        "teacher",
        [sys.executable, "-m", "bench.support.quick_teacher", str(port)],
        logs=folder,
        answers=lambda: accepts(port),
    )
    return Target(program, port, "/v1/chat/completions", "the teacher itself")


TARGETS: dict[str, Make] = {
    "nginx": nginx,
    "nightschool": ours,
    "tensorzero": tensorzero,
    "litellm": litellm,
}


def _peer(package: str) -> Path:
    python = PEERS / "bin" / "python"
    found = list(PEERS.glob(f"lib/python*/site-packages/{package}/__init__.py"))
    if not python.exists() or not found:
        raise Missing(f"{package} is not in {PEERS}: run bench/make-peers.sh")
    return python.absolute()
