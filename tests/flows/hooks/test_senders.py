"""Which signatures are believed, what they make of a message, and what is kept of the secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from flows.hooks.messages import wish
from flows.hooks.secrets import LiveSecrets, SecretError, SenderSecrets
from flows.hooks.senders import Refused, identify
from infra.database.events import list_events
from infra.database.open import Database
from infra.settings.operating import Hooks, HookSender

KEYS = ("k" * 40,)
BODY = b'{"task": "mail"}'
NOW = 1_900_000_000
SECRET = "whsec_" + base64.b64encode(b"night school is a school").decode()


def github(secret: str, body: bytes) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, "sha256").hexdigest()
    return {"X-Hub-Signature-256": f"sha256={digest}"}


def standard(body: bytes, message_id: str = "m1", secret: str = SECRET) -> dict[str, str]:
    at = datetime.fromtimestamp(int(time.time()), UTC)
    return {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": Webhook(secret).sign(message_id, at, body.decode()),
    }


def test_github_signs_the_body_so_another_delivery_id_is_the_same_message():
    senders = {"gh": HookSender(scheme="github")}
    secrets = {"gh": ["an old one", "s3cret"]}
    first = identify(
        senders, secrets, {**github("s3cret", BODY), "X-GitHub-Delivery": "1"}, BODY, NOW
    )
    again = identify(
        senders, secrets, {**github("s3cret", BODY), "X-GitHub-Delivery": "2"}, BODY, NOW
    )
    other = identify(senders, secrets, github("an old one", b"{}"), b"{}", NOW)
    assert first == again and first.sender == "gh" and other.message_id != first.message_id
    for headers in (
        github("s3cret", b"{}"),
        github("else", BODY),
        {},
        {"X-Hub-Signature-256": "é"},
    ):
        with pytest.raises(Refused, match="no known secret"):
            identify(senders, secrets, headers, BODY, NOW)


@pytest.mark.parametrize("offset", [0, 300, -300, 301, -301])
def test_a_plain_hmac_is_as_the_settings_tell_and_its_time_counts(offset: int):
    how = HookSender(
        scheme="hmac",
        signature_header="X-Sig",
        timestamp_header="X-Time",
        algorithm="sha512",
        encoding="base64",
        prefix="v0=",
    )
    seconds = str(NOW + offset)
    signature = hmac.new(b"s3cret", f"{seconds}.".encode() + BODY, "sha512").digest()
    headers = {"x-sig": "v0=" + base64.b64encode(signature).decode(), "x-time": seconds}
    if abs(offset) > 300:
        with pytest.raises(Refused):
            identify({"p": how}, {"p": ["s3cret"]}, headers, BODY, NOW)
        return
    signed = identify({"p": how}, {"p": ["s3cret"]}, headers, BODY, NOW)
    digest = hashlib.sha256(f"{seconds}.".encode() + BODY).hexdigest()
    assert signed.message_id == f"body:{digest}"
    for spoilt in ({"x-time": str(NOW + 1)}, {"x-time": "now"}, {"x-sig": headers["x-sig"][3:]}):
        with pytest.raises(Refused):
            identify({"p": how}, {"p": ["s3cret"]}, {**headers, **spoilt}, BODY, NOW)


def test_a_secret_is_good_for_its_own_scheme_and_sender_only():
    senders = {"gh": HookSender(scheme="github")}
    secrets = {"gh": [SECRET], "ci": [SECRET]}
    assert identify(senders, secrets, standard(BODY), BODY, NOW).sender == "ci"
    assert identify(senders, secrets, standard(BODY), BODY, NOW, named="ci").message_id == "m1"
    for named in ("gh", "nobody"):
        with pytest.raises(Refused):
            identify(senders, secrets, standard(BODY), BODY, NOW, named=named)
    with pytest.raises(Refused, match="longer than 200"):
        identify(senders, secrets, standard(BODY, "m" * 201), BODY, NOW)


def test_what_github_tells_of_becomes_a_reason_and_a_dispatch_is_a_message():
    how = HookSender(scheme="github", task="mail")
    body = b'{"action": "published", "repository": {"full_name": "a/b"}}'
    found = wish("retrain", how, {"X-GitHub-Event": "release"}, body, [])
    assert found.body == {"task": "mail", "reason": "GitHub release published of a/b"}
    body = b'{"client_payload": {"task": "all", "reason": "new prices"}}'
    found = wish("retrain", how, {"X-GitHub-Event": "repository_dispatch"}, body, [])
    assert found.body == {"task": None, "reason": "new prices"}
    assert wish("retrain", how, {"X-GitHub-Event": "ping"}, b"{}", []).ignored


def record(event: str, bucket: str, key: str) -> str:
    where = {"bucket": {"name": bucket}, "object": {"key": key}}
    return json.dumps({"eventName": event, "s3": where})


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [("s3:ObjectCreated:Put", "b", "logs%2Fv1%2Fa+b")],
            {"objects": 1, "first": "logs/v1/a b"},
        ),
        (
            [("ObjectCreated:Put", "b", "logs/1"), ("ObjectCreated:Put", "b", "x")],
            {"objects": 1, "first": "logs/1"},
        ),
        ([("ObjectRemoved:Delete", "b", "logs/1")], None),
        ([("ObjectCreated:Put", "c", "logs/1")], None),
        ([("ObjectCreated:Put", "b", "reports/1")], None),
    ],
)
def test_of_a_stores_notifications_only_new_logs_count(records, expected):
    body = f'{{"Records": [{", ".join(record(*one) for one in records)}]}}'.encode()
    found = wish("objects", HookSender(), {}, body, ["b/logs/"])
    assert (found.body, bool(found.ignored)) == ((expected, False) if expected else ({}, True))


def test_an_event_bridge_event_counts_too():
    detail = {"bucket": {"name": "b"}, "object": {"key": "logs/1"}}
    body = json.dumps({"detail-type": "Object Created", "detail": detail}).encode()
    assert wish("objects", HookSender(), {}, body, ["b/logs/"]).body["objects"] == 1
    for wrong in (
        b"{}",
        b'{"Records": [{"s3": 5}]}',
        b'{"Records": [{"s3": {"bucket": {"name": 1}}}]}',
    ):
        with pytest.raises(Refused, match="notification"):
            wish("objects", HookSender(), {}, wrong, ["b/logs/"])


def test_two_secrets_are_valid_at_once_and_no_third(each_database: Database):
    stored = SenderSecrets(each_database, KEYS)
    with pytest.raises(SecretError, match="no secret yet"):
        stored.rotate("ci", standard=True, overlap_seconds=60, actor="ann")
    first = stored.add("ci", standard=True, actor="ann")
    with pytest.raises(SecretError, match="already"):
        stored.add("ci", standard=True, actor="ann")
    second = stored.rotate("ci", standard=True, overlap_seconds=60, actor="ann")
    assert set(stored.live()["ci"]) == {first, second} and first != second
    with pytest.raises(SecretError, match="two secrets of ci"):
        stored.rotate("ci", standard=True, overlap_seconds=60, actor="ann")
    old, new = stored.list()
    assert old.expires is not None and new.expires is None
    stored.revoke("ci", old.id, actor="ben", why="it leaked")
    assert stored.live() == {"ci": (second,)}
    third = stored.rotate("ci", standard=True, overlap_seconds=0, actor="ann")
    assert stored.live() == {"ci": (third,)}
    with pytest.raises(SecretError, match="no secret"):
        stored.revoke("ci", old.id, actor="ben", why="again")
    with each_database.read() as connection:
        told = [(event.actor, event.what) for event in list_events(connection)]
        dump = str([tuple(event.__dict__.values()) for event in list_events(connection)])
    assert ("ben", "webhook_secret.revoked") in told and len(told) == 4
    assert not any(secret in dump for secret in (first, second, third))


def test_the_database_alone_gives_no_secret_away(database: Database):
    secret = SenderSecrets(database, KEYS).add("ci", standard=False, actor="ann")
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM webhook_secrets").all()
    assert len(rows) == 1 and secret not in str(rows)
    with pytest.raises(SecretError, match="sealed under another key"):
        SenderSecrets(database, ("o" * 40,)).live()
    assert SenderSecrets(database, ("o" * 40, *KEYS)).live() == {"ci": (secret,)}
    # A row that somebody copies to another sender opens for nobody.
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE webhook_secrets SET sender = 'evil'")
    with pytest.raises(SecretError):
        SenderSecrets(database, KEYS).live()


def test_settings_and_database_stand_side_by_side(database: Database):
    stored = SenderSecrets(database, KEYS)
    live = LiveSecrets(Hooks.model_validate({"secrets": {"ci": "a", "x": ["b", "c"]}}), stored)
    added = stored.add("ci", standard=True, actor="ann")
    assert not live.fresh
    live.read()
    assert live.known() == {"ci": ("a", added), "x": ("b", "c")} and live.fresh
