"""What the judge may still be asked: calls and money, counted in the store, so that no kill forgets them.

Calls and the cost that is expected at most are taken before a question is asked, and corrected by what it
really cost, in either direction. A process that dies between leaves the expected number. A budget ends
with the first question that goes beyond it: by no more than what that cost over what was expected.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from infra.objects.store import ObjectChanged, ObjectExists, ObjectMissing, ObjectStore

PREFIX = "reports/judge/spent/"
MAX_RACES = 100
KEPT_DAYS = 40
HALF_A_DAY = timedelta(hours=12)


@dataclass(frozen=True)
class Spent:
    calls: int = 0
    money: float = 0.0


class Budget:
    """Calls and money of one period, shared by every process that names the same.

    Args:
        name: of the period, such as ``night-2026-03-01``.
    """

    def __init__(self, store: ObjectStore, name: str, *, calls: int, money: float) -> None:
        self._store, self._key = store, f"{PREFIX}{name}.json"
        self.calls, self.money = calls, money

    def take(self, money: float) -> bool:
        """One call and its greatest cost; False when either is more than what is left."""
        return self._change(1, money, bounded=True)

    def correct(self, money: float) -> None:
        """What a question cost beyond what was taken for it; below 0: what it cost less."""
        self._change(0, money, bounded=False)

    def spent(self) -> Spent:
        return self._read()[0]

    def _change(self, calls: int, money: float, *, bounded: bool) -> bool:
        for _ in range(MAX_RACES):
            before, etag = self._read()
            after = Spent(max(0, before.calls + calls), max(0.0, before.money + money))
            if bounded and (after.calls > self.calls or after.money > self.money):
                return False
            data = json.dumps({"calls": after.calls, "money": after.money}).encode()
            try:
                if etag is None:
                    self._store.create(self._key, data)
                else:
                    self._store.replace(self._key, data, etag)
            except (ObjectExists, ObjectChanged, ObjectMissing):
                continue
            return True
        return not bounded  # others won every race: not asked, or not corrected

    def _read(self) -> tuple[Spent, str | None]:
        for _ in range(MAX_RACES):
            try:
                etag = self._store.info(self._key).etag
                value = json.loads(self._store.get(self._key))
                if self._store.info(self._key).etag == etag:
                    return Spent(int(value["calls"]), float(value["money"])), etag
            except ObjectMissing:
                return Spent(), None
        raise ObjectChanged(f"{self._key} changes faster than it can be read")


def night_of(now: datetime, timezone: str) -> str:
    """The night that a time belongs to: from noon to noon, by the day that it begins on."""
    return f"night-{(now.astimezone(ZoneInfo(timezone)) - HALF_A_DAY).date().isoformat()}"


def day_of(now: datetime, timezone: str) -> str:
    return f"day-{now.astimezone(ZoneInfo(timezone)).date().isoformat()}"


def clear_spent(store: ObjectStore, now: datetime) -> int:
    """Delete the counts of periods long past; how many."""
    before = (now - timedelta(days=KEPT_DAYS)).date().isoformat()
    old = [item.key for item in store.list(PREFIX) if item.key[-15:-5] < before]
    for key in old:
        store.delete(key)
    return len(old)
