"""What a key may ask for in a minute: token buckets in this process's memory.

Calls and tokens each have a bucket that holds a minute's worth and refills steadily, so a key that
was quiet may spend a whole minute's worth at once. A call is charged for what it brings when it
comes in, an estimate by its length, and for what it really took once that is known; a bucket may
therefore be overdrawn by the answers under way, and the key waits that much longer.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from serving.gateway.keys import Caller
from serving.gateway.problems import GatewayError
from serving.gateway.routes import KeyRoute

MAX_KEYS = 100_000
BYTES_PER_TOKEN = 4
"""A rough mean for English text and JSON; only until the real number is known."""


class Bucket:
    """So many a minute."""

    __slots__ = ("_at", "_held", "per_minute")

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self._held = per_minute
        self._at = now

    def level(self, now: float) -> float:
        """What is left at ``now``; below zero when it is overdrawn."""
        passed = max(0.0, now - self._at)
        self._held = min(self.per_minute, self._held + passed * self.per_minute / 60)
        self._at = now
        return self._held

    def take(self, amount: float) -> None:
        self._held -= amount

    def seconds_until(self, amount: float) -> float:
        """From the last ``level`` until it holds that much."""
        return max(0.0, (amount - self._held) * 60 / self.per_minute)

    def resized(self, per_minute: float) -> None:
        """Another limit: what was spent stays spent."""
        self._held += per_minute - self.per_minute
        self.per_minute = per_minute


class Admission:
    """One call that was let in under a limit. ``settle`` is called once its answer is known."""

    __slots__ = ("_charged", "_requests", "_tokens")

    def __init__(self, requests: Bucket | None, tokens: Bucket | None, charged: float) -> None:
        self._requests = requests
        self._tokens = tokens
        self._charged = charged

    def weigh(self, size_bytes: int) -> None:
        """Charge for the text once it was read, where its head did not tell how long it would be."""
        if self._tokens is not None:
            estimate = min(size_bytes / BYTES_PER_TOKEN, self._tokens.per_minute)
            if estimate > self._charged:
                self._tokens.take(estimate - self._charged)
                self._charged = estimate

    def settle(self, response: Mapping[str, Any]) -> None:
        """Charge for the tokens that the call took, and give back what was charged too much."""
        if self._tokens is None:
            return
        usage = response.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int) and total >= 0:
            self._tokens.take(total - self._charged)
        elif response.get("choices"):  # a stream whose caller did not ask for the usage
            self._tokens.take(len(orjson.dumps(response["choices"])) / BYTES_PER_TOKEN)

    def headers(self, now: float) -> dict[str, str]:
        """The limits and what is left of them, in OpenAI's headers."""
        told = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                left = bucket.level(now)
                told[f"x-ratelimit-limit-{name}"] = str(int(bucket.per_minute) or 1)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, int(left)))
                told[f"x-ratelimit-reset-{name}"] = (
                    f"{bucket.seconds_until(bucket.per_minute):.3f}s"
                )
        return told


def is_text(content_type: str) -> bool:
    """Whether a body's length tells its tokens. That of sound and images sent as they are does not."""
    return content_type.partition("/")[0] not in ("audio", "image", "video", "multipart")


class RateLimits:
    """The buckets of every key that has limits. For one event loop.

    Args:
        gateways: how many gateways share the limits; each allows its part.
        clock: monotonic seconds.
        most: keys that are remembered; the least recently used is forgotten first, and starts full.
    """

    def __init__(
        self,
        gateways: int = 1,
        clock: Callable[[], float] = time.monotonic,
        most: int = MAX_KEYS,
    ) -> None:
        self._gateways = gateways
        self.clock = clock
        self._most = most
        self._buckets: OrderedDict[str, tuple[Bucket | None, Bucket | None]] = OrderedDict()

    def admit(self, caller: Caller, size_bytes: int) -> Admission | None:
        """Let a call in and charge for it; None when the caller has no limits.

        Args:
            size_bytes: of its text, as far as its head tells.

        Raises:
            GatewayError: 429, with how long to wait.
        """
        entry = caller.key
        if entry is None or not entry.limited:
            return None
        now = self.clock()
        requests, tokens = self._of(caller.key_hash, entry, now)
        if requests is not None and requests.level(now) < 1:
            raise _exceeded("requests", requests, 1, Admission(requests, tokens, 0).headers(now))
        if tokens is not None and tokens.level(now) < 1:
            raise _exceeded("tokens", tokens, 1, Admission(requests, tokens, 0).headers(now))
        charged = 0.0
        if requests is not None:
            requests.take(1)
        if tokens is not None:
            # An image in the text is long and few tokens: never more than a minute's worth.
            charged = min(size_bytes / BYTES_PER_TOKEN, tokens.per_minute)
            tokens.take(charged)
        return Admission(requests, tokens, charged)

    def _of(
        self, key_hash: str, entry: KeyRoute, now: float
    ) -> tuple[Bucket | None, Bucket | None]:
        wanted = (entry.requests_per_minute, entry.tokens_per_minute)
        known = self._buckets.get(key_hash, (None, None))
        made = tuple(
            self._bucket(bucket, per_minute, now)
            for bucket, per_minute in zip(known, wanted, strict=True)
        )
        pair = self._buckets[key_hash] = (made[0], made[1])
        self._buckets.move_to_end(key_hash)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return pair

    def _bucket(self, bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
        if per_minute is None:
            return None
        # At least one call a minute, or a key that is spread thin could never be used.
        share = max(1.0, per_minute / self._gateways)
        if bucket is None:
            return Bucket(share, now)
        if bucket.per_minute != share:
            bucket.level(now)
            bucket.resized(share)
        return bucket


def _exceeded(kind: str, bucket: Bucket, need: float, headers: dict[str, str]) -> GatewayError:
    seconds = bucket.seconds_until(need)
    error = GatewayError(
        429,
        f"this key's limit of {int(bucket.per_minute) or 1} {kind} per minute is reached: "
        f"try again in {seconds:.1f} seconds",
        kind=kind,
        code="rate_limit_exceeded",
        retry_after_seconds=max(1, math.ceil(seconds)),
    )
    error.headers |= {**headers, "retry-after-ms": str(math.ceil(seconds * 1000))}
    return error
