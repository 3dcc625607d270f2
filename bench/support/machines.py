"""Machines on one: each has an address, processes and folders of its own; they share one bridge.

Processes of two machines reach each other only over the network and do not see each other (Ray, for
one, looks for its own by their command lines), and what one keeps on its disk the other does not see.
Needs Linux, root, ``ip`` (iproute2), ``unshare`` and ``nsenter`` (util-linux).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from infra.parent_death import end_with_parent

_ROOT = Path(__file__).resolve().parent.parent.parent
_START = """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 70; shift 2; done
echo up
while :; do sleep 3600 & wait; done
"""
"""The machine's first process: it binds the folders, then adopts what others leave behind."""


class NoMachines(Exception):
    """Namespaces cannot be made here; the message says what is missing."""


@dataclass(frozen=True)
class Machine:
    """Made by ``machines``."""

    name: str
    """Its network namespace."""
    address: str
    first_pid: int
    """Of its first process, as seen from here."""

    def command(self, argv: Sequence[str], user: str | None = None) -> list[str]:
        """``argv`` as a command that runs on this machine, as another user if one is named."""
        enter = ["nsenter", f"--target={self.first_pid}", "--net", "--mount", "--pid"]
        if user:
            # In /: the repository may be closed to it.
            return [
                *enter,
                "setpriv",
                f"--reuid={user}",
                f"--regid={user}",
                "--clear-groups",
                *argv,
            ]
        return [*enter, f"--wdns={_ROOT}", *argv]


@contextmanager
def machines(count: int, folder: Path, own: Sequence[Path]) -> Iterator[tuple[str, list[Machine]]]:
    """This machine's address among them, and so many machines; all of it is gone at the end.

    Args:
        folder: for their disks.
        own: folders that each machine has for itself; they exist here, where nothing is in them.

    Raises:
        NoMachines: this system has no namespaces for us.
    """
    missing = [
        tool for tool in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None
    ]
    if os.getuid() != 0 or missing:
        what = f"{', '.join(missing)} is not installed" if missing else "only root makes namespaces"
        raise NoMachines(f"two machines on one cannot be made here: {what}")
    # From the range for benchmarks (RFC 2544), by process: two runs at once do not meet.
    number = os.getpid() % 65536
    network = f"198.{18 + number % 2}.{number // 2 % 256}"
    bridge = f"nsb{number}"
    with ExitStack() as made:
        _ip("link", "add", bridge, "type", "bridge")
        made.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{network}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = []
        for index in range(1, count + 1):
            name, outside = f"ns{number}-{index}", f"nsv{number}-{index}"
            address = f"{network}.{index}"
            _ip("netns", "add", name)
            made.callback(_ip, "netns", "del", name)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", outside, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", f"{network}.254")
            pid = made.enter_context(_started(name, folder / name, own))
            found.append(Machine(name, address, pid))
        yield f"{network}.254", found


@contextmanager
def _started(name: str, disk: Path, own: Sequence[Path]) -> Iterator[int]:
    """The first process of a machine; whatever runs on it ends with it."""
    binds: list[str] = []
    for number, path in enumerate(own):
        (disk / str(number)).mkdir(parents=True, exist_ok=True)
        binds += [str(disk / str(number)), str(path)]
    enter = ["ip", "netns", "exec", name, "unshare", "--mount", "--propagation", "private"]
    enter += ["--pid", "--kill-child", "--mount-proc", "sh", "-c", _START, "sh", *binds, "--"]
    with subprocess.Popen(
        enter,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=partial(end_with_parent, signal.SIGKILL),
    ) as outside:
        try:
            assert outside.stdout is not None
            if outside.stdout.readline() != b"up\n":
                raise NoMachines(f"the machine {name} does not start: status {outside.wait()}")
            (inside,) = psutil.Process(outside.pid).children()
            yield inside.pid
        finally:
            outside.kill()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoMachines(f"ip {' '.join(words)} failed: {done.stderr.strip()}")
