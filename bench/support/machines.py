"""Machines on one: each a network namespace with an address and folders of its own, on one bridge.

Processes of two machines reach each other only over the network, and what one keeps on its disk the
other does not see. Needs Linux, root, and ``ip`` (iproute2) and ``unshare`` (util-linux).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_BIND = """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 70; shift 2; done
shift
exec "$@"
"""


class NoMachines(Exception):
    """Namespaces cannot be made here; the message says what is missing."""


@dataclass(frozen=True)
class Machine:
    """Made by ``machines``."""

    name: str
    """Its network namespace."""
    address: str
    disk: Path
    """Where its own folders really lie."""
    own: tuple[Path, ...]
    """Paths that are another folder on every machine."""

    def command(self, argv: Sequence[str], user: str | None = None) -> list[str]:
        """``argv`` as a command that runs on this machine, as another user if one is named."""
        binds: list[str] = []
        for number, path in enumerate(self.own):
            (self.disk / str(number)).mkdir(parents=True, exist_ok=True)
            binds += [str(self.disk / str(number)), str(path)]
        switched = (
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        )
        enter = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--propagation", "private"]
        return [*enter, "sh", "-c", _BIND, "sh", *binds, "--", *switched, *argv]


@contextmanager
def machines(count: int, folder: Path, own: Sequence[Path]) -> Iterator[tuple[str, list[Machine]]]:
    """This machine's address among them, and so many machines; all of it is gone at the end.

    Args:
        folder: for their disks.
        own: folders that each machine has for itself; they exist here, where nothing is in them.

    Raises:
        NoMachines: this system has no namespaces for us.
    """
    missing = [tool for tool in ("ip", "unshare", "setpriv") if shutil.which(tool) is None]
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
            found.append(Machine(name, address, folder / name, tuple(own)))
        yield f"{network}.254", found


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoMachines(f"ip {' '.join(words)} failed: {done.stderr.strip()}")
