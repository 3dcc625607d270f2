"""Slack as a bot: threads, edits, and never twice, against a local end that checks what it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from pydantic import SecretStr

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.notify import outbox as outbox_module
from infra.notify.message import Action, DeliveryFailed, Message
from infra.notify.open import open_channels
from infra.notify.outbox import deliver, enqueue
from infra.notify.slack import SlackBotChannel
from infra.notify.threads import Threads
from infra.settings.operating import Notify
from tests.contracts.servers import free_port
from tests.slack_server import CHANNEL, TOKEN, Slack, start_slack


def step(
    number: int, title: str = "", *, progress: bool = False, thread: str = "rollout:7"
) -> Message:
    return Message(
        key=f"rollout:7:{number}",
        topic="task:mail",
        title=title or f"step {number}",
        what=f"what {number}",
        exposed=f"Now: {number}0% of the sessions.",
        why="e_good crossed 20",
        evidence={"sessions": number},
        undo="nightschool rollback mail",
        actions=(Action("pause", "7"), Action("rollback", "7")),
        thread=thread,
        progress=progress,
    )


def link(action: Action) -> str:
    return f"https://night.example/act/{action.what}/{action.rollout_id}"


@pytest.fixture
def slack() -> Iterator[Slack]:
    with start_slack() as started:
        yield started
    assert started.refused == []


def bot(slack: Slack, database: Database, timeout_seconds: float = 5) -> SlackBotChannel:
    return SlackBotChannel(
        TOKEN,
        CHANNEL,
        Threads(database),
        api_url=slack.api,
        timeout_seconds=timeout_seconds,
        links=link,
    )


def shown(message: dict) -> str:
    return json.dumps(message["blocks"], ensure_ascii=False)


def test_one_thread_per_rollout_whose_head_is_edited(slack: Slack, database: Database) -> None:
    channel = bot(slack, database)
    channel.send(step(1, "Shadow started", progress=True))
    channel.send(step(2, "Canary started"))
    channel.send(step(3, "Canary raised", progress=True))
    # Another process goes on with the same thread.
    bot(slack, database).send(step(4, "Adapter promoted"))
    (head,) = slack.heads()
    assert [reply["text"].split(":")[0] for reply in slack.replies()] == [
        "Canary started",
        "Adapter promoted",
    ]
    assert {reply["thread_ts"] for reply in slack.replies()} == {head["ts"]}
    assert {reply["subtype"] for reply in slack.replies()} == {"thread_broadcast"}
    assert "what 4" in shown(head) and "Now: 40% of the sessions." in shown(head)
    assert "Shadow started → Canary started → Canary raised → Adapter promoted" in shown(head)
    assert len(slack.edits) == 3


def test_buttons_are_links(slack: Slack, database: Database) -> None:
    bot(slack, database).send(step(1))
    (actions,) = [block for block in slack.messages[0]["blocks"] if block["type"] == "actions"]
    assert [(button["text"]["text"], button["url"]) for button in actions["elements"]] == [
        ("Pause", "https://night.example/act/pause/7"),
        ("Roll back", "https://night.example/act/rollback/7"),
    ]


def test_what_belongs_to_no_thread_stands_alone(slack: Slack, database: Database) -> None:
    channel = bot(slack, database)
    channel.send(step(1, thread=""))
    channel.send(step(2, thread=""))
    assert len(slack.heads()) == 2 and slack.edits == []


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("page", [1, 200])
def test_an_answer_that_was_lost_is_not_said_again(
    slack: Slack, database: Database, number: int, page: int
) -> None:
    """Posted, and the connection broke before Slack's answer: as a head, and as a reply."""
    slack.page = page
    channel = bot(slack, database)
    for earlier in range(1, number):
        channel.send(step(earlier))
    slack.faults = ["lost"]
    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        channel.send(step(number))
    channel.send(step(number), utc_now())
    channel.send(step(number + 1))
    assert len(slack.messages) == number + 1
    assert len(slack.heads()) == 1
    assert f"what {number + 1}" in shown(slack.heads()[0])


@pytest.mark.parametrize("after", ["send", "settle"])
def test_killed_anywhere_in_a_delivery_each_message_is_said_once(
    slack: Slack, each_database: Database, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    now = utc_now()
    channel = bot(slack, each_database)
    with each_database.begin() as connection:
        for number in (1, 2, 3):
            enqueue(connection, step(number), ["slack"], now)
    for _ in range(3):
        with monkeypatch.context() as patch:
            if after == "send":
                # Between Slack's answer and our note of where the thread begins, or how far it is.
                patch.setattr(Threads, "begin", die)
                patch.setattr(Threads, "save", die)
            else:
                patch.setattr(outbox_module, "_settle", die)
            with pytest.raises(Killed):
                deliver(each_database, {"slack": channel}, now)
        now += timedelta(seconds=121)
        total = 0
        # One at a time, so that every one of them is interrupted once.
        with monkeypatch.context() as patch:
            patch.setattr(outbox_module, "MAX_BATCH", 1)
            total = deliver(each_database, {"slack": channel}, now).delivered
        assert total == 1
    assert len(slack.messages) == 3 and len(slack.heads()) == 1
    assert "step 1 → step 2 → step 3" in shown(slack.heads()[0])


def test_a_head_that_somebody_deleted_is_followed_by_a_new_one(
    slack: Slack, database: Database
) -> None:
    channel = bot(slack, database)
    channel.send(step(1))
    slack.messages.clear()
    channel.send(step(2))
    channel.send(step(3))
    assert [head["metadata"]["event_payload"]["key"] for head in slack.heads()] == ["rollout:7:2"]
    assert len(slack.replies()) == 1


def test_a_head_that_may_not_be_edited_any_more_holds_up_nothing(
    slack: Slack, database: Database
) -> None:
    channel = bot(slack, database)
    channel.send(step(1))
    slack.faults = ["ok", "edit_window_closed"]
    channel.send(step(2))
    assert len(slack.replies()) == 1


def test_slow_down_is_told_with_its_time(slack: Slack, database: Database) -> None:
    slack.faults = ["429"]
    with pytest.raises(DeliveryFailed) as caught:
        bot(slack, database).send(step(1))
    assert caught.value.retry_after_seconds == 7 and not caught.value.permanent
    assert slack.calls == ["chat.postMessage"]


@pytest.mark.parametrize(
    ("fault", "said", "permanent"),
    [
        ("500", "internal_error", False),
        ("hang", "cannot be reached", False),
        ("not_in_channel", "invite the app", False),
        ("invalid_blocks", "invalid_blocks", True),
    ],
)
def test_failures_say_what_to_do_and_not_the_token(
    slack: Slack, database: Database, fault: str, said: str, permanent: bool
) -> None:
    slack.faults = [fault]
    with pytest.raises(DeliveryFailed, match=said) as caught:
        bot(slack, database, timeout_seconds=1).send(step(1))
    assert caught.value.permanent is permanent
    assert "verysecret" not in str(caught.value)


def test_slack_down_keeps_the_order_and_slack_back_gets_it_all_once(
    slack: Slack, database: Database
) -> None:
    now = utc_now()
    with database.begin() as connection:
        for number in (1, 2, 3):
            enqueue(connection, step(number), ["slack"], now)
    slack.faults = ["500", "429", "lost"]
    channels = {"slack": bot(slack, database)}
    delivered = 0
    for _ in range(8):
        delivered += deliver(database, channels, now).delivered
        now += timedelta(seconds=130)
    assert delivered == 3
    assert [head["metadata"]["event_payload"]["key"] for head in slack.heads()] == ["rollout:7:1"]
    assert [reply["text"][:6] for reply in slack.replies()] == ["step 2", "step 3"]


def test_an_app_that_may_not_read_says_it_again_rather_than_not_at_all(
    slack: Slack, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    slack.readable = False
    bot(slack, database).send(step(1), utc_now())
    assert len(slack.messages) == 1
    assert "channels:history" in caplog.text


def test_nobody_there_is_a_failure(database: Database) -> None:
    channel = SlackBotChannel(
        TOKEN, CHANNEL, Threads(database), api_url=f"http://127.0.0.1:{free_port()}/api/"
    )
    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        channel.send(step(1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slack_token": SecretStr(TOKEN)}, "slack_channel"),
        (
            {
                "slack_token": SecretStr(TOKEN),
                "slack_channel": CHANNEL,
                "slack_webhook_url": SecretStr("https://x/verysecret"),
            },
            "twice",
        ),
        ({"apprise": (SecretStr("nosuch://verysecret"),)}, "nosuch"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(
    database: Database, values: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_channels(Notify(**values), database)
    assert "verysecret" not in str(caught.value)


def test_open_channels_makes_the_bot(slack: Slack, database: Database) -> None:
    settings = Notify(
        slack_token=SecretStr(TOKEN), slack_channel=CHANNEL, slack_api_url=slack.api.rstrip("/")
    )
    open_channels(settings, database, link)["slack"].send(step(1))
    assert len(slack.messages) == 1
