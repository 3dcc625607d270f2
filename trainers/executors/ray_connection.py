"""This process's connection to Ray, and how it is made anew when the Ray of its own machine dies.

A process that asks Ray for something does it through its machine's raylet. When that dies, what was
submitted through it never ends, and what is submitted from then on fails at once; only a new
connection helps. It is made a bounded number of times.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainers.executors.protocol import ExecutorError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two questions whether this machine's raylet lives, and between two tries to come back."""
BACK_SECONDS = 600.0
"""How long whoever runs the machine's Ray may take to start it again."""
MOST_RETURNS = 3
"""What kills Ray each time is not mended by a fourth start."""
_CLIENT_ATTEMPTS = 3
"""Ray's client gives a server of its own half a minute to start, which a busy head may not keep."""


class Connection:
    """Whoever asks Ray for anything holds ``lock`` and has seen that it is ``whole``: nobody may be
    within Ray while it is left and joined again.

    Args:
        connect: joins or starts Ray; True when it started one. Raises ExecutorError.
        leave: leaves it, however broken it is.
        lives: whether what this process asks through is there. Raises ConnectionError when not.
    """

    def __init__(
        self,
        connect: Callable[[], bool],
        leave: Callable[[], None],
        lives: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect, self._leave, self._lives, self._clock = connect, leave, lives, clock
        self.lock = threading.RLock()
        self.owner = connect()
        """Whether Ray was started here, and so is ended here."""
        self.number = 1
        """Of this connection: what was submitted through an earlier one is lost."""
        self._next_look = clock() + LOOK_SECONDS
        self._lost: float | None = None

    @property
    def given_up(self) -> bool:
        """Whether it was lost and nobody tries any more to come back."""
        if self._lost is None:
            return False
        return self.number > MOST_RETURNS or self._clock() > self._lost + BACK_SECONDS

    def whole(self, *, look: bool = False) -> bool:
        """Whether Ray can be asked; where it was lost, a try to come back is made now and then.

        Args:
            look: not trusting what was seen some seconds ago.
        """
        with self.lock:
            if look or self._clock() >= self._next_look:
                if self._lost is None and not self._alive():
                    self.lose()
                if self._lost is not None and not self.given_up:
                    self._come_back()
                self._next_look = self._clock() + LOOK_SECONDS
            return self._lost is None

    def lose(self) -> None:
        """Note that Ray, asked, turned out to be gone."""
        with self.lock:
            if self._lost is None:
                logger.warning("the Ray of this machine is gone")
                self._lost = self._next_look = self._clock()

    def wait_until_whole(self) -> None:
        """Raises ExecutorError when it does not come back."""
        while not self.whole(look=True):
            if self.given_up:
                raise ExecutorError(GONE)
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        if self.owner:
            self._leave()

    def _alive(self) -> bool:
        try:
            return self._lives()
        except ConnectionError:
            return False

    def _come_back(self) -> None:
        self._leave()
        try:
            self.owner = self._connect()
        except ExecutorError as error:
            logger.warning("it is not back yet: %s", error)
            return
        self.number += 1
        self._lost = None
        logger.warning("connected to Ray again; what was training goes on from its checkpoints")


GONE = (
    "the Ray of this machine was lost and did not come back: check its raylet's log, "
    "or set training.executor to local"
)


def open_connection(address: str | None, workers: int, cpus: float, gpus: float) -> Connection:
    """To the cluster at ``address``, or to a Ray started here. Raises ExecutorError."""

    def leave() -> None:
        import ray

        ray.shutdown()

    # Ray's client lives in another process, which takes its server with it: asking it fails then.
    lives = _client_lives if (address or "").startswith("ray://") else _raylet_lives
    return Connection(lambda: _connect(address, workers, cpus, gpus), leave, lives)


def _raylet_lives() -> bool:
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Alive"] for node in ray.nodes())


def _client_lives() -> bool:
    import ray

    return bool(ray.util.client.ray.is_connected())


def _connect(address: str | None, workers: int, cpus: float, gpus: float) -> bool:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ExecutorError(
            "the ray executor needs the package ray: install the extra 'train', "
            "or set training.executor to local"
        ) from error
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            _join(address, quiet)
            return False
        # On loopback and for this process only: a token would just leave a file in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=max(1, round(workers * cpus)),
            num_gpus=max(0, round(workers * gpus)),
            include_dashboard=False,
            **quiet,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = address or "this machine"
        raise ExecutorError(f"no Ray at {place} ({error}): check training.ray_address") from error
    return True


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    """Connect to a cluster; through Ray's client (``ray://host:port``) from a machine outside it."""
    import ray

    for left in reversed(range(_CLIENT_ATTEMPTS if address.startswith("ray://") else 1)):
        try:
            ray.init(address=address, **quiet)
            return
        except (ConnectionError, RuntimeError):
            if not left:
                raise
