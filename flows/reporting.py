"""Links to the reports that people read."""

from __future__ import annotations

import logging

from flows.wiring import Context
from infra.signed_links import LinkSigner
from infra.signing_keys import SigningKeyError, signing_keys

logger = logging.getLogger(__name__)


def report_url(context: Context, key: str) -> str:
    """A link that opens this report for ``hooks.link_seconds``; without a key it asks for one."""
    hooks = context.settings.hooks
    try:
        token = LinkSigner(signing_keys(hooks)).make("report", key, hooks.link_seconds)
    except SigningKeyError as error:
        # A night is not stopped by a link: the report opens with an API key.
        logger.warning("the link to %s is not signed: %s", key, error)
        return f"{hooks.address}/{key}"
    return f"{hooks.address}/{key}?link={token}"
