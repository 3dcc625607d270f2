"""Addresses at which a person can act on a message: signed, for one rollout and one act, for a time."""

from __future__ import annotations

import logging

from infra.notify.message import Action
from infra.settings.operating import Hooks
from infra.signed_links import LinkSigner
from infra.signing_keys import SigningKeyError, signing_keys

logger = logging.getLogger(__name__)

PATH = "/act"


def purpose(what: str) -> str:
    """Of the link that may do this: one for a pause is none for an approval."""
    return f"act.{what}"


class ActionLinks:
    """Makes the addresses. The keys are read when the first one is needed."""

    def __init__(self, settings: Hooks) -> None:
        self._settings = settings
        self._signer: LinkSigner | None = None

    def __call__(self, action: Action) -> str | None:
        """The address of a page that asks before it acts; None when no key can be had."""
        try:
            self._signer = self._signer or LinkSigner(signing_keys(self._settings))
        except SigningKeyError as error:
            # A message without buttons is better than none.
            logger.warning("messages carry no buttons: %s", error)
            return None
        token = self._signer.make(
            purpose(action.what), action.rollout_id, self._settings.action_link_seconds
        )
        return f"{self._settings.address}{PATH}/{action.what}/{token}"
