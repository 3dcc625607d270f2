"""Recorded traffic for the tests of ingest, discovery and data sets."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord, Usage
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from infra.settings.learning import Discovery, Ingest, Training
from infra.settings.model import Settings
from trainers.ingest.ingest import ingest
from trainers.ingest.reading import call_files, read_columns

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
SETTINGS = Settings(
    ingest=Ingest(claim_seconds=600),
    discovery=Discovery(min_calls=20, dimensions=256),
    training=Training(min_examples=10),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"area": {"type": "string"}}},
        },
    }
    for name in ("turn_on", "turn_off")
]
TRIAGE = {
    "type": "json_schema",
    "json_schema": {
        "name": "triage",
        "schema": {"type": "object", "properties": {"team": {"type": "string"}}},
    },
}
THINGS = ("printer", "laptop", "invoice", "router", "camera", "refund", "account", "bike")
FAULTS = ("is broken", "does not start", "arrived late", "was charged twice", "shows an error")
AREAS = ("kitchen", "office", "bedroom", "garden", "hall", "attic")


def opened(tmp_path) -> tuple[DirectoryStore, Database]:
    database = Database(f"sqlite:///{tmp_path / 'night.db'}")
    database.upgrade()
    return DirectoryStore(tmp_path / "objects"), database


def call(number: int = 0, user: str = "hello", answer=None, system: str = "Be brief.", **more):
    """A call answered by the teacher; ``more`` sets fields of the request or of the record."""
    fields = {name: more.pop(name) for name in list(more) if name in CallRecord.model_fields}
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    message = (
        answer if isinstance(answer, dict) else {"role": "assistant", "content": answer or "ok"}
    )
    return CallRecord(
        **{
            "id": f"call-{number:05d}",
            "time": START + timedelta(seconds=number),
            "session": f"session-{number // 2:04d}",
            "request": {"model": "m", "messages": messages, **more},
            "response": {"choices": [{"message": message}]},
            "usage": Usage(prompt_tokens=100, completion_tokens=20),
            "answered_by": AnsweredBy(model="teacher"),
            **fields,
        }
    )


def tool_answer(name: str, arguments: str):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_x", "type": "function", "function": function}],
    }


def home(number: int, **more) -> CallRecord:
    dice = random.Random(f"home{number}")
    verb, area = dice.choice(["on", "off"]), dice.choice(AREAS)
    polite = dice.choice(["please ", "", "would you ", "hey, "])
    answer = tool_answer(f"turn_{verb}", f'{{"area": "{area}"}}')
    user = f"{polite}turn {verb} the {area} {dice.choice(['light', 'lamp', 'heater'])}"
    return call(number, user, answer, "You control a home.", tools=TOOLS, **more)


def ticket(number: int, **more) -> CallRecord:
    dice = random.Random(f"ticket{number}")
    thing = dice.choice(THINGS)
    team = "billing" if thing in ("invoice", "refund", "account") else "hardware"
    user = f"my {thing} {dice.choice(FAULTS)} since {dice.choice(['yesterday', 'last week'])}"
    answer = f'{{"team": "{team}"}}'
    system = f"Sort tickets into teams. Today is 2026-03-{number % 28 + 1:02d}."
    return call(number, user, answer, system, response_format=TRIAGE, **more)


def translation(number: int, **more) -> CallRecord:
    dice = random.Random(f"translation{number}")
    text = f"{dice.choice(THINGS)} {dice.choice(FAULTS)} {dice.choice(['again', 'at night'])}"
    user = f"Translate into {dice.choice(['French', 'German', 'Spanish'])}: {text}"
    return call(number, user, f"Traduit {text}", "You are a helpful assistant.", **more)


def summary(number: int, **more) -> CallRecord:
    dice = random.Random(f"summary{number}")
    who, does = dice.choice(THINGS), dice.choice(["wait", "hire", "ship", "stop", "sell"])
    when = dice.choice(["next week", "now", "later"])
    user = f"Summarize these meeting notes in two sentences. {who} group decided to {does} {when}"
    return call(number, user, f"They {does}.", "You are a helpful assistant.", **more)


def put_log(store, records, sequence: int = 0, extra: bytes = b"") -> str:
    key = log_key(START, "gateway", sequence)
    store.put(key, encode_lines(records) + extra)
    return key


def run(store, database, settings=SETTINGS, holder="night", now=START):
    return ingest(store, database, settings, holder=holder, now=now)


def stored(store, database):
    files = call_files(database, 10**9)
    return [row["id"] for row in read_columns(store, files, ["id"])]
