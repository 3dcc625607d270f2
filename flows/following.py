"""Follow a training run to its end, and say in a bounded number of lines how it goes. No Prefect here."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from infra.calls.record import utc_now
from trainers.executors.protocol import RunHandle, RunOutcome
from trainers.run_folder import Progress
from trainers.run_report import Report

Say = Callable[[str], None]
Show = Callable[[Progress], None]
POLL_SECONDS = 10.0
PACE = 30
"""One line of progress for so many a part of the time that has passed: 170 lines in eight hours."""
DEADLINE_GRACE = timedelta(minutes=10)
"""How long a run may take to stop cleanly after the night's end before it is cancelled."""
LINES_AT_ONCE, LINES_IN_ALL, LINE_CHARACTERS = 20, 200, 400
"""Of what a run's processes print."""
_BAR = "%|"
"""What the libraries' progress bars have in each of their lines."""


def follow(
    handle: RunHandle,
    name: str,
    say: Say,
    *,
    show: Show = lambda _: None,
    deadline: datetime | None = None,
    poll_seconds: float = POLL_SECONDS,
) -> RunOutcome:
    """Wait for the run's end; one that ignores its deadline is cancelled.

    Args:
        name: what the lines begin with.
        say: takes each line.
        show: takes each progress that a line was said of.
    """
    news = News(name)
    began = time.monotonic()

    def tell(final: bool = False) -> None:
        try:
            report = handle.report()
        except OSError:  # a folder that is just being made, or gone: the run is not
            return
        lines, progressed = news.of(report, time.monotonic() - began, final=final)
        for line in lines:
            say(line)
        if progressed:
            show(report.progress)

    while True:
        try:
            outcome = handle.wait(poll_seconds)
        except TimeoutError:
            tell()
            if deadline is not None and utc_now() > deadline + DEADLINE_GRACE:
                handle.cancel()
        else:
            tell(final=True)
            return outcome


class News:
    """From report to report: what has not been said yet. Pure but for what it remembers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._step = 0
        self._next = 0.0
        self._processes = 1
        self._noted = 0.0
        self._read: int | None = None
        self._printed = 0

    def of(self, report: Report, passed: float, *, final: bool = False) -> tuple[list[str], bool]:
        """The lines to say, and whether one is of new progress.

        Args:
            passed: seconds since the run was submitted.
            final: nothing comes after this report.
        """
        said = [*self._begun(report), *self._notes(report), *self._log(report)]
        lines = [f"{self._name}: {line}" for line in said]
        progress = report.progress
        due = passed >= self._next or final
        if progress.step == self._step or not due:
            return lines, False
        self._step = progress.step
        self._next = passed + max(POLL_SECONDS, passed / PACE)
        return [*lines, f"{self._name}: {told(progress)}"], True

    def _begun(self, report: Report) -> list[str]:
        if report.processes <= self._processes:
            return []
        self._processes = report.processes
        return [f"process {report.processes} goes on, since the one before was lost"]

    def _notes(self, report: Report) -> list[str]:
        new = [(at, text) for at, text in report.notes if at > self._noted]
        self._noted = max([self._noted, *(at for at, _ in new)])
        return [text for _, text in new]

    def _log(self, report: Report) -> list[str]:
        """The whole new lines of the log, without progress bars, as far as they are in the report."""
        text, end = report.log, report.log_bytes
        data = text.encode(errors="surrogateescape")
        read = end - len(data) if self._read is None else min(self._read, end)
        new = data[max(0, len(data) - (end - read)) :]
        whole = new.rfind(b"\n") + 1
        self._read = end - len(new) + whole
        lines = [
            line.rpartition("\r")[2].strip()[:LINE_CHARACTERS]
            for line in new[:whole].decode(errors="replace").split("\n")
        ]
        lines = [line for line in lines if line and _BAR not in line]
        room = min(LINES_AT_ONCE, LINES_IN_ALL - self._printed)
        if len(lines) > room:
            first = len(lines) - room + 1
            left_out = f"({first} lines are only in its log)"
            lines = [left_out, *lines[first:]] if room > 0 else []
        self._printed += len(lines)
        return lines


def told(progress: Progress) -> str:
    """``step 40 of 200, loss 0.512, validation loss 0.600, 1,204 tokens a second, about 80 s left``."""
    left = progress.seconds_left
    parts = [
        f"step {progress.step} of {progress.steps}",
        f"loss {progress.loss:.3f}" if progress.loss is not None else "",
        f"validation loss {progress.validation_loss:.3f}"
        if progress.validation_loss is not None
        else "",
        f"{progress.tokens_per_second:,.0f} tokens a second" if progress.tokens_per_second else "",
        f"about {left:.0f} s left" if left else "",
    ]
    return ", ".join(part for part in parts if part)
