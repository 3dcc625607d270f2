"""Run the embedded engine: ``python -m serving.engines.embedded --model DIR --port 8302``.

Prints one JSON line when it is ready to serve. SIGTERM lets the answers under way finish. An API key
is read from the environment (``NIGHTSCHOOL_ENGINE__API_KEY``), where no process list shows it. Keep
the port private: whoever reaches it without a key may load adapters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from infra.artifacts.base import BaseShape
    from serving.engines.embedded.server import EmbeddedServer

API_KEY_VARIABLE = "NIGHTSCHOOL_ENGINE__API_KEY"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 and a line that says why when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m serving.engines.embedded")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face model folder")
    parser.add_argument("--served-model-name", default="base", help="the base model's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8302, help="0 takes any free port")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--batch-window-seconds", type=float, default=0.008)
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=30,
        help="how long an unload, and the end of the engine, wait for answers under way",
    )
    for name, default in (
        ("--max-adapters", 8),
        ("--max-rank", 32),
        ("--threads", 1),
        ("--batch-size", 16),
        ("--max-waiting", 64),
        ("--max-prompt-tokens", 2048),
        ("--max-answer-tokens", 1024),
    ):
        parser.add_argument(name, type=_positive, default=default)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 after a clean stop, 1 when the model or the port cannot be had."""
    options = arguments(argv)
    # Before torch is imported: OpenMP reads it once.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(_serve(options))
    except _CannotStart as error:
        print(f"embedded engine: {error}", file=sys.stderr)
        return 1
    return 0


class _CannotStart(Exception):
    pass


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the slow start, so that a busy one is known at once."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _CannotStart(
            f"{host}:{port} cannot be used ({error.strerror}): is another engine running there?"
        ) from error
    return listener


async def _serve(options: argparse.Namespace) -> None:
    from infra.artifacts.base import read_base_shape
    from infra.artifacts.manifest import ArtifactError

    with _listen(options.host, options.port) as listener:
        try:
            shape = read_base_shape(options.model)
            server = _load(options, shape)
        except (ArtifactError, OSError, ValueError) as error:
            raise _CannotStart(str(error)) from error
        runner = web.AppRunner(
            server.application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=options.drain_seconds,
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            host, port = listener.getsockname()[:2]
            ready = {"event": "ready", "url": f"http://{host}:{port}", "base_digest": shape.digest}
            print(json.dumps(ready), flush=True)
            await stop.wait()
        finally:
            await runner.cleanup()


def _load(options: argparse.Namespace, shape: BaseShape) -> EmbeddedServer:
    import torch

    from serving.engines.embedded.base_model import load_base_model
    from serving.engines.embedded.server import EmbeddedServer, Limits

    torch.set_num_threads(options.threads)
    return EmbeddedServer(
        load_base_model(options.model, options.precision),
        shape,
        name=options.served_model_name,
        limits=Limits(
            max_adapters=options.max_adapters,
            max_rank=options.max_rank,
            batch_size=options.batch_size,
            max_waiting=options.max_waiting,
            window_seconds=options.batch_window_seconds,
            max_prompt_tokens=options.max_prompt_tokens,
            max_answer_tokens=options.max_answer_tokens,
            threads=options.threads,
            drain_seconds=options.drain_seconds,
        ),
        api_key=os.environ.get(API_KEY_VARIABLE) or None,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
