"""Logs taken in, our own and other systems': each object once, by one at a time. No Prefect here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flows.following import POLL_SECONDS, Say
from flows.holding import Busy, hold
from flows.wiring import Context
from infra.objects.store import ObjectStoreError
from trainers.importing.importing import ImportReport, import_logs
from trainers.importing.rerun import RerunReport, rerun
from trainers.ingest.ingest import IngestReport, ingest
from trainers.ingest.workers import open_workers

INGEST = "ingest"
IMPORT = "import"
INGEST_WAIT_SECONDS = 600.0


def ingest_logs(context: Context, say: Say = lambda _: None) -> IngestReport:
    """Take in what no run has taken in yet; waits for another ingest that is at it."""
    with hold(context.database, INGEST, context.holder, wait_seconds=INGEST_WAIT_SECONDS):
        import_sources(context, say)
        # Whoever has the lease takes over the claims of one that was killed.
        with open_workers(context.settings, say) as workers:
            return ingest(
                context.store,
                context.database,
                context.settings,
                holder=INGEST,
                progress=_seldom(say),
                workers=workers,
            )


def import_sources(context: Context, say: Say = lambda _: None) -> None:
    """Take in what is new in ``ingest.sources``. One that cannot be reached stops no other."""
    for source in context.settings.ingest.sources:
        try:
            report = import_foreign(
                context, source.format, source.location, tenant=source.tenant, say=_seldom(say)
            )
        except (Busy, ObjectStoreError) as error:
            # An import by hand may be at it for long: neither it nor a store holds up a night.
            say(f"{source.location} could not be read, and is tried again next time: {error}")
            continue
        say(
            f"{source.location}: {report.stored} records of {report.objects} new objects, "
            f"{report.quarantined.total()} rows in quarantine, {report.failed} objects failed"
        )


def import_foreign(
    context: Context,
    format_name: str,
    location: str,
    *,
    tenant: str = "default",
    dry_run: bool = False,
    say: Say = lambda _: None,
) -> ImportReport:
    """Another system's logs into our own log; waits for another import that is at it."""
    with hold(context.database, IMPORT, context.holder, wait_seconds=INGEST_WAIT_SECONDS):
        return import_logs(
            context.store,
            context.database,
            context.settings,
            format_name,
            location,
            tenant=tenant,
            dry_run=dry_run,
            progress=say,
        )


def rerun_quarantine(context: Context, wanted: Sequence[str] = ()) -> RerunReport:
    """Read the rows in quarantine again; not while an import or an ingest writes there."""
    with (
        hold(context.database, INGEST, context.holder, wait_seconds=INGEST_WAIT_SECONDS),
        hold(context.database, IMPORT, context.holder, wait_seconds=INGEST_WAIT_SECONDS),
    ):
        return rerun(context.store, context.settings, wanted)


def _seldom(say: Say) -> Say:
    """Pass on a line at most every ``POLL_SECONDS``: a day has thousands of log objects."""
    last = time.monotonic()

    def pass_on(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= POLL_SECONDS:
            last = time.monotonic()
            say(line)

    return pass_on
