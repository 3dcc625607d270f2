"""All pages of the reference, by name. The settings' page is made by ``infra/settings/page.py``."""

from __future__ import annotations

from flows.cli import main
from flows.hooks.openapi import document as hooks_document
from flows.reference.addresses import addresses_page
from flows.reference.commands import commands_page
from serving.gateway.openapi import document as gateway_document
from serving.registry.reading.openapi import openapi_document as registry_document

FOLDER = "infra/docs/reference"


def pages() -> dict[str, str]:
    """File name to text."""
    return {
        "commands.md": commands_page(main),
        "gateway-api.md": addresses_page(
            gateway_document("-"),
            "It listens at `gateway.host` and `gateway.port`, 8300 by default.",
        ),
        "webhooks-api.md": addresses_page(
            hooks_document(), "It listens at `hooks.host` and `hooks.port`, 8303 by default."
        ),
        "registry-api.md": addresses_page(
            registry_document(),
            "It listens at `registry.host` and `registry.port`, 8306 by default.",
        ),
    }
