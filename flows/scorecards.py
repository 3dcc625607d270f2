"""The scorecard of a judgement as a page of its own among the reports. No Prefect here."""

from __future__ import annotations

from dataclasses import asdict

from evaluators.pages import Picture, html, markdown
from evaluators.scorecard_page import scorecard_page
from flows.judgement import Judgement
from flows.reporting import report_url
from flows.wiring import Context

MARKDOWN, PAGE, PICTURE = "scorecard.md", "scorecard.html", "risk-coverage.svg"


def keep_scorecard(context: Context, judgement: Judgement) -> str:
    """Write the page, its Markdown and its picture beside the judgement; the page's object key."""
    folder = folder_of(judgement)
    title, blocks = scorecard_page(asdict(judgement))
    for block in blocks:
        if isinstance(block, Picture):
            context.store.put(f"{folder}/{PICTURE}", block.svg.encode())
    context.store.put(f"{folder}/{MARKDOWN}", markdown(title, blocks, PICTURE).encode())
    context.store.put(f"{folder}/{PAGE}", html(title, blocks).encode())
    return page_of(judgement)


def scorecard_markdown(context: Context, judgement: Judgement) -> str:
    """The page as Markdown, its picture and itself by links that open without a key."""
    folder = folder_of(judgement)
    title, blocks = scorecard_page(asdict(judgement))
    text = markdown(title, blocks, report_url(context, f"{folder}/{PICTURE}"))
    return f"{text}\n[This page by itself]({report_url(context, page_of(judgement))})\n"


def page_of(judgement: Judgement) -> str:
    """The object key of its page."""
    return f"{folder_of(judgement)}/{PAGE}"


def folder_of(judgement: Judgement) -> str:
    """Where its page lies: with the judgement, under the same name."""
    return judgement.report.removesuffix(".json")
