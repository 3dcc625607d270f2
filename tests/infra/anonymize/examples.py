"""Personal data, and what holds it."""

from __future__ import annotations

from typing import Any

from infra.anonymize.anonymizer import Anonymizer, Scope
from infra.calls.record import AnsweredBy, CallRecord
from infra.settings.serving import Anonymizer as AnonymizerSettings

ANN, BOB, PHONE, CARD = "ann@example.com", "bob@example.org", "415-555-2671", "4111111111111111"
SECRETS = [ANN, BOB, PHONE, CARD, "203.0.113.7", "sk-abcdefghijklmnopqrstuvwx12"]


def scope(**settings: Any) -> Scope:
    return Anonymizer(AnonymizerSettings.model_validate(settings)).scope()


def call(**values: Any) -> CallRecord:
    return CallRecord.model_validate(
        {
            "session": "s",
            "request": {"messages": [{"role": "user", "content": f"I am {ANN}"}]},
            "response": {"choices": [{"message": {"role": "assistant", "content": f"hi {ANN}"}}]},
            "answered_by": AnsweredBy(model="teacher"),
            **values,
        }
    )
