from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.stack.processes import Stack, StackError, require_free_ports
from flows.stack.services import Service
from tests.prefect_server import free_port

SERVER = (
    "import http.server, subprocess, sys; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), "
    "type('H', (http.server.BaseHTTPRequestHandler,), "
    "{'do_GET': lambda self: (self.send_response(200), self.end_headers())})).serve_forever()"
)


def server(name: str = "web", after: str | None = None) -> Service:
    port = free_port()
    return Service(
        name,
        "a test server",
        (sys.executable, "-c", SERVER, str(port)),
        "127.0.0.1",
        port,
        f"http://127.0.0.1:{port}/",
        ready_seconds=30,
        after=after,
    )


def group_members(group: int) -> list[int]:
    """Living processes of a process group; zombies do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def gone(groups: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(group_members(group) for group in groups):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_services_start_in_order_and_all_of_them_stop_with_their_children(tmp_path: Path):
    said: list[str] = []
    with Stack(tmp_path, said.append) as stack:
        stack.start([server("second", after="first"), server("first")])
        pids = stack.pids()
        assert set(pids) == {"first", "second"}
        assert all(len(group_members(pid)) == 2 for pid in pids.values())
    assert [line.split(":")[0] for line in said] == ["first", "second"]
    assert gone(list(pids.values()))


def test_a_busy_port_is_one_clear_line_and_nothing_is_started(tmp_path: Path):
    wanted = server("gateway")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", wanted.port or 0))
        taken.listen()
        with pytest.raises(StackError, match=rf"port {wanted.port} \(gateway\) is in use"):
            require_free_ports([wanted])
        with Stack(tmp_path) as stack:
            with pytest.raises(StackError):
                stack.start([wanted])
            assert stack.pids() == {}


def test_a_process_that_cannot_start_is_named_with_its_last_words(tmp_path: Path):
    failing = Service(
        "engine",
        "",
        (sys.executable, "-c", "import sys; sys.exit('no model in this folder')"),
        ready_url="http://127.0.0.1:9/",
    )
    with Stack(tmp_path) as stack, pytest.raises(StackError, match="no model in this folder"):
        stack.start([failing])


def test_what_dies_is_started_again(tmp_path: Path):
    with Stack(tmp_path) as stack:
        stack.start([server()])
        first = stack.pids()["web"]
        os.killpg(first, signal.SIGKILL)
        assert gone([first])
        stack.check()
        assert stack.pids()["web"] != first
        assert group_members(stack.pids()["web"])


def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path):
    service = server()
    program = (
        "import sys, time; from pathlib import Path\n"
        "from flows.stack.processes import Stack; from flows.stack.services import Service\n"
        f"stack = Stack(Path({str(tmp_path)!r}))\n"
        f"stack.start([Service('web', '', {service.argv!r}, ready_url={service.ready_url!r})])\n"
        "print(stack.pids()['web'], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    leader = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while leader in group_members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = group_members(leader)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert leader not in left
