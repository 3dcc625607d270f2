"""The adapters that the embedded server holds: loading, counting who uses them, draining.

Runs in the event loop. The weights themselves change hands in the model's thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.artifacts.manifest import ArtifactError
from serving.engines.embedded.mixed_lora import AdapterWeights
from serving.engines.protocol import ADAPTER_NAME

Call = Callable[[Callable[[], Any]], Any]


class AdapterProblem(Exception):
    """A request about adapters that cannot be met; ``status`` is the HTTP status to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Held:
    """One adapter: where it came from, where it is, who uses it."""

    name: str
    folder: Path
    slot: int
    in_flight: int = 0
    removal: asyncio.Task[None] | None = None
    """Set once the adapter takes no new requests."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Adapters:
    """Adapters by name.

    Args:
        read: verifies and reads an adapter folder; blocks, raises ArtifactError.
        add, remove: put weights into the bank and take them out; run in the model's thread.
        in_model_thread: runs a function there and awaits it.
        max_adapters: how many may be held; one more is refused, never traded for another.
        drain_seconds: how long an unload waits for the adapter's requests.
    """

    def __init__(
        self,
        *,
        read: Callable[[str, Path], AdapterWeights],
        add: Callable[[AdapterWeights], int],
        remove: Callable[[int], None],
        in_model_thread: Call,
        max_adapters: int,
        drain_seconds: float,
    ) -> None:
        self._read = read
        self._add = add
        self._remove = remove
        self._in_model_thread = in_model_thread
        self._max_adapters = max_adapters
        self._drain_seconds = drain_seconds
        self._held: dict[str, Held] = {}
        self._loading: dict[str, asyncio.Event] = {}

    def listed(self) -> list[Held]:
        """The adapters that take requests."""
        return [held for held in self._held.values() if held.removal is None]

    async def load(self, name: str, folder: Path) -> None:
        """Raises AdapterProblem: 400 bad name, duplicate or bad folder, 404 no folder, 409 full,
        503 the same adapter is just being unloaded."""
        if not ADAPTER_NAME.fullmatch(name):
            raise AdapterProblem(400, f"adapter name {name[:80]!r} is not allowed")
        while name in self._loading:
            # Answered only once it is known whether the first loader succeeds.
            await self._loading[name].wait()
        held = self._held.get(name)
        if held is not None and held.removal is not None:
            raise AdapterProblem(503, f"adapter {name} is being unloaded; ask again")
        if held is not None:
            raise AdapterProblem(400, f"adapter {name} is already loaded")
        if len(self._held) + len(self._loading) >= self._max_adapters:
            raise AdapterProblem(
                409,
                f"{self._max_adapters} adapters are loaded, no more may be: "
                "unload one that no route needs, or raise engine.max_adapters",
            )
        loaded = self._loading[name] = asyncio.Event()
        try:
            if not await asyncio.to_thread(folder.is_dir):
                raise AdapterProblem(404, f"no adapter folder {folder}")
            weights = await asyncio.to_thread(self._read, name, folder)
            slot = await self._in_model_thread(lambda: self._add(weights))
            self._held[name] = Held(name, folder, slot)
        except ArtifactError as error:
            raise AdapterProblem(400, f"adapter {name} not loaded: {error}") from error
        finally:
            del self._loading[name]
            loaded.set()

    async def unload(self, name: str) -> None:
        """Refuse new requests at once, take the adapter out when its last one is done.

        Raises AdapterProblem: 404 unknown, 503 still draining (asking again waits again).
        """
        held = self._held.get(name)
        if held is None:
            raise AdapterProblem(404, f"adapter {name[:80]} is not loaded")
        if held.removal is None:
            held.removal = asyncio.create_task(self._drain(held))
        done, _ = await asyncio.wait({held.removal}, timeout=self._drain_seconds)
        if not done:
            raise AdapterProblem(
                503, f"adapter {name} still answers {held.in_flight} requests; takes no new ones"
            )
        held.removal.result()

    def acquire(self, name: str) -> int:
        """The slot of an adapter, which stays until ``release``. Raises KeyError."""
        held = self._held[name]
        if held.removal is not None:
            raise KeyError(name)
        held.in_flight += 1
        return held.slot

    def release(self, name: str) -> None:
        held = self._held[name]
        held.in_flight -= 1
        if held.in_flight == 0:
            held.idle.set()

    async def _drain(self, held: Held) -> None:
        while held.in_flight:
            held.idle.clear()
            await held.idle.wait()
        await self._in_model_thread(lambda: self._remove(held.slot))
        del self._held[held.name]
