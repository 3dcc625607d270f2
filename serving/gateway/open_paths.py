"""Which of the teacher's other paths a caller may use.

What passes through is asked with the operator's key, or from inside the operator's network. So a key
with the role ``call`` gets what answers a question and keeps nothing (``gateway.open_paths``); files,
fine-tuning, batches and stored answers belong to whoever runs the account and need ``operate``; what
runs an organization needs ``admin``.
"""

from __future__ import annotations

from collections.abc import Iterable

from infra.settings.model import Settings
from serving.gateway.keys import Caller, require_role

ADMIN_PATHS = frozenset({"organization", "organizations", "projects"})
"""First segments that run the account itself."""


class OpenPaths:
    """The rule, from entries such as ``POST /embeddings`` or ``GET /responses/*``."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._exact: set[tuple[str, str]] = set()
        self._under: dict[str, list[str]] = {}
        for entry in entries:
            method, _, path = entry.partition(" ")
            if path.endswith("/*"):
                self._under.setdefault(method, []).append(path[:-1])
            else:
                self._exact.add((method, path))

    def holds(self, method: str, path: str) -> bool:
        """Args: path: without ``/v1``, query, and dots; begins with a slash."""
        path = path.rstrip("/")
        return (method, path) in self._exact or any(
            path.startswith(above) for above in self._under.get(method, ())
        )


class Permission:
    """Whether a caller may have a request passed on to the teacher."""

    def __init__(self, settings: Settings) -> None:
        self._open = OpenPaths(settings.gateway.open_paths)
        # With neither, callers bring the teacher's own key, and its server decides.
        self._ours = settings.teacher.api_key is not None or settings.gateway.require_key

    def check(self, method: str, path: str, caller: Caller) -> None:
        """Raises GatewayError 401 or 403."""
        if not self._ours and not caller.key_known:
            return
        if self._open.holds(method, path):
            return
        admin = path.split("/")[1] in ADMIN_PATHS
        require_role(caller, "admin" if admin else "operate", f"{method} on this path")
