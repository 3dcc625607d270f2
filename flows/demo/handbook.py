"""One-off questions about the support handbooks: calls that belong to no task.

They ask in many ways about many things and never the same twice, so no cluster worth a model forms
around them and the teacher keeps answering.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random

from flows.demo.packaged import support_policy

SYSTEM_PROMPTS = (
    None,
    "You are a helpful assistant.",
    "You explain our handbooks to new colleagues.",
)
QUESTIONS = (
    "What does the {domain} handbook say about '{heading}'?",
    "I am new here. Can you explain '{heading}' in the {domain} team?",
    "Summarize the rules on {heading} for {domain} agents.",
    "A colleague asked me about {heading} ({domain}). What should I tell her?",
    "Remind me how we handle {heading} in {domain}.",
    "Which points matter most for {heading}? I work in {domain}.",
)
LONGEST_ANSWER = 400


@dataclass(frozen=True)
class _Section:
    domain: str
    heading: str
    text: str


def sample_question(random: Random) -> tuple[str | None, str, str]:
    """System prompt (or none), question and answer."""
    section = random.choice(_sections())
    question = random.choice(QUESTIONS).format(domain=section.domain, heading=section.heading)
    return random.choice(SYSTEM_PROMPTS), question, section.text


@cache
def _sections() -> tuple[_Section, ...]:
    return tuple(
        _Section(domain, heading.strip().lower(), _first_sentences(body))
        for domain in ("airline", "retail", "telecom")
        for heading, body in re.findall(
            r"^#{2,3} (.+)\n((?:(?!#).*\n?)+)", support_policy(domain), re.MULTILINE
        )
        if _first_sentences(body)
    )


def _first_sentences(body: str) -> str:
    text = " ".join(body.replace("*", "").split())
    if len(text) <= LONGEST_ANSWER:
        return text
    return text[:LONGEST_ANSWER].rsplit(". ", 1)[0].rstrip(".") + "."
