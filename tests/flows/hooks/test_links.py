"""The pages behind buttons: a look changes nothing, a press does the one thing the link is for."""

from __future__ import annotations

import json
import re
import time
from datetime import timedelta
from urllib.parse import urlencode

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from slack_sdk.signature import SignatureVerifier

from flows.hooks.links import ActionPages
from infra.calls.record import utc_now
from infra.database.open import Database
from infra.signed_links import LinkSigner
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import tend
from serving.rollout.orders import give_order
from tests.serving.registry.world import MINUTE, NOW, add_task
from tests.serving.rollout.stage import GOOD, bring_to

SIGNER = LinkSigner(["k" * 40])


def link(what: str, rollout_id: str, signed_for: str = "") -> str:
    return f"/act/{what}/{SIGNER.make(f'act.{signed_for or what}', rollout_id, 60)}"


@pytest.fixture
def registry(database: Database) -> Registry:
    add_task(database, "mail")
    return Registry(database)


@pytest.fixture
def rollout(registry: Registry) -> Rollout:
    return bring_to(registry, "canary")


@pytest.fixture
async def client(registry: Registry):
    app = web.Application()
    ActionPages(registry, SIGNER, ("console",), lambda: None).register(app)
    async with TestClient(TestServer(app)) as started:
        yield started


async def test_a_look_asks_and_changes_nothing(
    client: TestClient, registry: Registry, rollout: Rollout
) -> None:
    before = registry.rollout(rollout.id), registry.route("mail")
    answer = await client.get(link("rollback", rollout.id))
    assert answer.status == 200
    page = await answer.text()
    assert rollout.adapter in page and "<form method=post>" in page
    assert answer.headers["cache-control"] == "no-store"
    assert (registry.rollout(rollout.id), registry.route("mail")) == before


async def test_a_press_rolls_back_once_and_says_who(
    client: TestClient, registry: Registry, rollout: Rollout
) -> None:
    address = link("rollback", rollout.id)
    answer = await client.post(address, data={"name": "<b>Ann</b>", "why": "wrong totals"})
    assert answer.status == 200
    after = registry.rollout(rollout.id)
    assert (after.state, after.reason) == ("rolled_back", "wrong totals")
    assert registry.events(rollout.id, 1)[0].actor == "<b>Ann</b> (by link)"
    again = await client.post(address)
    assert again.status == 409 and "Nothing was done" in await again.text()


async def test_an_old_link_does_not_take_back_what_came_since(
    client: TestClient, registry: Registry
) -> None:
    old = bring_to(registry, "promoted", 1)
    new = bring_to(registry, "promoted", 2, now=NOW + MINUTE)
    answer = await client.post(link("rollback", old.id))
    assert answer.status == 409
    assert registry.route("mail").champion == new.adapter


async def test_an_old_link_does_not_take_back_the_same_adapter_brought_in_again(
    client: TestClient, registry: Registry
) -> None:
    old = bring_to(registry, "canary")
    give_order(registry, old.id, "abort", actor="t", why="w", now=NOW + MINUTE)
    new = bring_to(registry, "canary", now=NOW + 30 * MINUTE)
    assert new.adapter == old.adapter and new.id != old.id
    address = link("rollback", old.id)
    look = await client.get(address)
    assert look.status == 409 and "out of date" in await look.text()
    press = await client.post(address)
    assert press.status == 409 and "out of date" in await press.text()
    assert registry.rollout(new.id).state == "canary"
    tend(registry, new.id, lambda _: GOOD, NOW + 31 * MINUTE, "test")
    assert registry.rollout(new.id).state == "promoted"
    assert (await client.post(address)).status == 409
    assert registry.route("mail").champion == new.adapter
    assert (await client.post(link("rollback", new.id))).status == 200
    assert registry.route("mail").champion == "teacher"


@pytest.mark.parametrize("signed_for", ["approve", "report"])
async def test_a_link_is_good_for_its_own_act_only(
    client: TestClient, registry: Registry, rollout: Rollout, signed_for: str
) -> None:
    answer = await client.post(link("pause", rollout.id, signed_for))
    assert answer.status == 403
    assert not registry.rollout(rollout.id).paused


@pytest.mark.parametrize("method", ["get", "post"])
async def test_a_link_whose_time_is_over_says_so_and_does_nothing(
    client: TestClient, registry: Registry, rollout: Rollout, method: str
) -> None:
    hours_ago = LinkSigner(["k" * 40], now=lambda: utc_now() - timedelta(hours=2))
    address = f"/act/rollback/{hours_ago.make('act.rollback', rollout.id, 3600)}"
    answer = await getattr(client, method)(address)
    assert answer.status == 403
    assert re.search(r"This link held until .{16} UTC\.", await answer.text())
    assert registry.rollout(rollout.id) == rollout


async def test_what_cannot_be_done_is_said_before_the_press(
    client: TestClient, rollout: Rollout
) -> None:
    answer = await client.get(link("approve", rollout.id))
    assert answer.status == 409 and "does not wait for an approval" in await answer.text()


async def test_pause_and_resume(client: TestClient, registry: Registry, rollout: Rollout) -> None:
    assert (await client.post(link("pause", rollout.id))).status == 200
    assert registry.rollout(rollout.id).paused and registry.route("mail").weight == 0
    assert (await client.post(link("resume", rollout.id))).status == 200
    assert not registry.rollout(rollout.id).paused


async def test_slack_is_answered_when_a_button_only_opens_its_address(
    client: TestClient, registry: Registry, rollout: Rollout
) -> None:
    action = {
        "type": "button",
        "action_id": "act-rollback",
        "url": f"http://127.0.0.1{link('rollback', rollout.id)}",
    }
    pressed = {"type": "block_actions", "user": {"id": "U1"}, "actions": [action]}
    body = urlencode({"payload": json.dumps(pressed)})
    now = str(int(time.time()))
    signature = SignatureVerifier("s" * 32).generate_signature(timestamp=now, body=body)
    before = registry.rollout(rollout.id), registry.route("mail")
    answer = await client.post(
        "/slack/pressed",
        data=body,
        headers={
            "content-type": "application/x-www-form-urlencoded",
            "x-slack-request-timestamp": now,
            "x-slack-signature": signature,
        },
    )
    # An empty 200: with anything else Slack shows a warning beside the button.
    assert (answer.status, await answer.read()) == (200, b"")
    assert (await client.get("/slack/pressed")).status == 405
    assert (registry.rollout(rollout.id), registry.route("mail")) == before
