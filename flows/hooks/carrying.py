"""Do what was asked for: start the flow run, gather new objects for one ingest, store feedback.

Every message is in the database before anything is done, and each way of doing it bears repetition: a
flow run has the message's id as its idempotency key, a batch of feedback is one object of one name. So
a kill anywhere is mended by doing it again, and any number of receivers may do so at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from datetime import timedelta

from flows.hooks.receipts import Receipt, Receipts
from flows.orchestrator import Orchestrator, OrchestratorDown, OrchestratorRefused
from infra.calls.codec import encode_lines, log_key
from infra.calls.record import FeedbackRecord, utc_now
from infra.objects.store import ObjectExists, ObjectStore, ObjectStoreError
from infra.settings.operating import Hooks

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""Between two tries while Prefect is down."""
URGENT_FIRST = ("rollback", "retrain")


class Carrier:
    """Carries kept messages out. Thread-safe."""

    def __init__(
        self, settings: Hooks, receipts: Receipts, store: ObjectStore, orchestrator: Orchestrator
    ) -> None:
        self._settings = settings
        self._receipts = receipts
        self._store = store
        self._orchestrator = orchestrator
        self._retry_at = 0.0
        self._lock = threading.Lock()
        self.waiting = 0
        """Kept messages when last counted."""

    @property
    def prefect_is_down(self) -> bool:
        return self._retry_at > 0

    def start(self, receipt: Receipt) -> None:
        """Start the flow run of one message, or leave it kept. Raises OrchestratorDown."""
        try:
            run = self._orchestrator.start(receipt.hook, receipt.body, idempotency_key=receipt.key)
        except OrchestratorRefused as error:
            if not error.final:
                # Not deployed yet, or credentials that somebody is about to mend.
                raise self._down(OrchestratorDown(str(error))) from None
            self._receipts.settle([receipt], "failed", str(error))
        except OrchestratorDown as error:
            raise self._down(error) from None
        else:
            self._retry_at = 0.0
            self._receipts.settle([receipt], "started", "", run.id)

    def carry_out(self) -> None:
        """One round over everything that waits. One thread at a time; the next does nothing."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            counted = self._receipts.count_kept()
            self.waiting = sum(count for count, _ in counted.values())
            if not counted:
                return
            kept_since = utc_now() - timedelta(seconds=self._settings.keep_seconds)
            given_up = self._receipts.give_up(
                kept_since,
                "given up: it could not be started in time; send it anew if it still holds",
            )
            if given_up:
                logger.error("%d webhooks were given up after [hooks] keep_seconds", given_up)
            if "feedback" in counted:
                self._store_feedback()
            if time.monotonic() >= self._retry_at:
                self._start_all(counted.keys())
        finally:
            self._lock.release()

    def _start_all(self, hooks: Collection[str]) -> None:
        try:
            for hook in URGENT_FIRST:
                if hook in hooks:
                    for receipt in self._receipts.kept(hook):
                        self.start(receipt)
            if "objects" in hooks:
                self._ingest(self._receipts.kept("objects"))
        except OrchestratorDown as error:
            logger.warning("webhooks are kept until Prefect is back: %s", error)

    def _ingest(self, notices: Sequence[Receipt]) -> None:
        """One ingest for all that was told of; what comes while one runs waits for the next."""
        if not notices:
            return
        ripe = notices[0].received + timedelta(seconds=self._settings.objects_seconds)
        try:
            if utc_now() < ripe or self._orchestrator.under_way("ingest"):
                return
            run = self._orchestrator.start("ingest", {}, idempotency_key=notices[0].key)
        except OrchestratorRefused as error:
            raise self._down(OrchestratorDown(str(error))) from None
        except OrchestratorDown as error:
            raise self._down(error) from None
        self._retry_at = 0.0
        self._receipts.settle(notices, "started", "", run.id)

    def _store_feedback(self) -> None:
        for batch, receipts in self._receipts.batches().items():
            records = [FeedbackRecord.model_validate(receipt.body) for receipt in receipts]
            key = log_key(min(record.time for record in records), f"hooks-{batch}", 0)
            try:
                self._store.create(key, encode_lines(records))
            except ObjectExists:
                pass  # stored by one that was killed, or by another receiver
            except ObjectStoreError as error:
                logger.warning("feedback waits in the database: %s", error)
                return
            self._receipts.settle_batch(batch, key)

    def _down(self, error: OrchestratorDown) -> OrchestratorDown:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        return error
