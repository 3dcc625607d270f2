"""Milliseconds that the gateway adds to a call, against asking the same teacher directly.

A mock teacher and the gateway (with anonymizer, spool and a directory as the store, as it ships) run
in processes of their own; the same requests go to both, in turns, so that other work on the machine
falls on both alike. Closed loop. Prints one JSON object; what counts is ``added`` and ``ratio``.

    python bench/gateway_overhead.py [--calls 300] [--clients 1,16]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROUNDS = 6
HISTORY = "Earlier in this conversation nothing of importance was said about the lights. " * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="per target and number of clients")
    parser.add_argument("--clients", default="1,16", help="numbers of callers at the same time")
    parser.add_argument("--teacher-port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.teacher_port:
        serve_teacher(options.teacher_port)
        return
    clients = [int(number) for number in options.clients.split(",")]
    print(json.dumps(measure(options.calls, clients), indent=2))


def serve_teacher(port: int) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        message = {"role": "assistant", "content": "The kitchen light is on."}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 200, "completion_tokens": 6, "total_tokens": 206},
            }
        )

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def measure(count: int, clients: list[int]) -> dict[str, Any]:
    teacher, gateway = free_port(), free_port()
    direct, through = (f"http://127.0.0.1:{port}" for port in (teacher, gateway))
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "NIGHTSCHOOL_TEACHER__URL": f"{direct}/v1",
            "NIGHTSCHOOL_GATEWAY__PORT": str(gateway),
            "NIGHTSCHOOL_STORAGE__URL": f"{scratch}/objects",
            "NIGHTSCHOOL_DATABASE__URL": f"sqlite:///{scratch}/nightschool.db",
            "NIGHTSCHOOL_GATEWAY__SPOOL": f"{scratch}/spool",
            "NIGHTSCHOOL_GATEWAY__SNAPSHOT": f"{scratch}/routes.json",
            "NIGHTSCHOOL_GATEWAY__ADAPTERS": f"{scratch}/adapters",
        }
        commands = [
            [sys.executable, __file__, "--teacher-port", str(teacher)],
            [sys.executable, "-m", "serving.gateway"],
        ]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes = [
            subprocess.Popen(command, env=environment, cwd=ROOT, **silent) for command in commands
        ]
        try:
            return asyncio.run(take_turns(direct, through, count, clients))
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


async def take_turns(direct: str, through: str, count: int, clients: list[int]) -> dict[str, Any]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        for url in (direct, through):
            await answering(http, url)
        return {str(n): await compare(http, direct, through, count, n) for n in clients}


async def compare(http: Any, direct: str, through: str, count: int, clients: int) -> dict[str, Any]:
    """Both targets with so many callers at once; times in milliseconds."""
    times: dict[str, list[float]] = {direct: [], through: []}
    spent = {direct: 0.0, through: 0.0}
    for turn in range(ROUNDS):
        for url in (direct, through) if turn % 2 else (through, direct):
            started = time.perf_counter()
            times[url] += await load(http, url, max(clients, count // ROUNDS), clients)
            spent[url] += time.perf_counter() - started
    rows = {
        name: {**percentiles(times[url]), "calls_per_second": round(len(times[url]) / spent[url])}
        for name, url in (("direct", direct), ("gateway", through))
    }
    a, b = rows["direct"], rows["gateway"]
    return {
        **rows,
        "added": {name: round(b[name] - a[name], 2) for name in ("p50", "p95")},
        "ratio": {name: round(b[name] / a[name], 2) for name in ("p50", "p95")},
    }


async def load(http: Any, url: str, count: int, clients: int) -> list[float]:
    """Milliseconds of each call, from ``clients`` callers of whom each waits for its answer."""
    left = iter(range(count))
    found: list[float] = []

    async def caller() -> None:
        for number in left:
            body = {
                "model": "big",
                "messages": [
                    {"role": "system", "content": "You switch the lights of a house."},
                    {"role": "user", "content": HISTORY},
                    {"role": "assistant", "content": "I see."},
                    {"role": "user", "content": f"light {number} on, mail ann{number}@example.com"},
                ],
            }
            started = time.perf_counter()
            async with http.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.read()
                assert response.status == 200, response.status
            found.append((time.perf_counter() - started) * 1000)

    await asyncio.gather(*(caller() for _ in range(clients)))
    return found


async def answering(http: Any, url: str) -> None:
    import aiohttp

    for _ in range(600):
        try:
            await load(http, url, 20, 1)
            return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"nothing answers at {url}")


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100)
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
