"""One anonymizer scope per session of a tenant, so that a value keeps its placeholder.

Bounded: the scope that was not used for longest is dropped first. A session that comes back later
gets a new scope; its requests carry their whole conversation, so each call stays consistent in itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

MAX_SCOPES = 20_000
S = TypeVar("S")


class Scopes(Generic[S]):
    """(tenant, session) to scope. Tenants never share one, whatever they call their sessions."""

    def __init__(self, make: Callable[[], S], most: int = MAX_SCOPES) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], S] = OrderedDict()

    def of(self, tenant: str, session: str) -> S:
        key = (tenant, session)
        with self._lock:
            scope = self._kept.get(key)
            if scope is None:
                scope = self._kept[key] = self._make()
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
            return scope

    def peek(self, tenant: str, session: str) -> S | None:
        """The scope if it is still there."""
        with self._lock:
            return self._kept.get((tenant, session))

    def __len__(self) -> int:
        return len(self._kept)
