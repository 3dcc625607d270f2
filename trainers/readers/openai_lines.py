"""OpenAI's stored chat completions, and its fine-tuning files (supervised and preference)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infra.calls.codec import RecordError
from trainers.readers.completions import completion
from trainers.readers.fields import instant, mapping, sequence, text
from trainers.readers.making import (
    Parts,
    call,
    chain,
    content_id,
    number_in,
    own_id,
    request,
    tagged,
    undated,
    usage,
)
from trainers.readers.messages import messages
from trainers.readers.reader import Item, Place


class OpenAiLines:
    """One stored completion, or one training example, a line.

    A stored completion is the object that the API returns with its ``messages`` beside it (the API
    lists these apart). Each assistant message of a training example is one call, unless its weight
    is 0; all of an example are one session. Examples have no time: they count as older than all.
    """

    name = "openai"

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        if value.get("object") == "chat.completion":
            return True
        if {"input", "preferred_output"} <= value.keys():
            return True
        return "messages" in value and not {"inputs", "response", "call_type"} & value.keys()

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        if "choices" in value:
            yield self._stored(value, place)
        elif "preferred_output" in value:
            asked = mapping(value.get("input"))
            answer = sequence(value.get("preferred_output"))
            if len(answer) != 1:
                raise RecordError("the preferred answer is not one message", "preferred_output")
            said = [*messages(asked, "input"), *messages(answer, "preferred_output")]
            yield from self._example(value, said, asked, place)
        else:
            yield from self._example(value, messages(value.get("messages")), value, place)

    def _stored(self, value: Mapping[str, Any], place: Place) -> Item:
        said = value.get("messages", value.get("input"))
        if isinstance(said, Mapping):  # a page of the API's list
            said = said.get("data")
        if not said:
            raise RecordError(
                "a stored completion without its messages: the API lists them apart", "messages"
            )
        foreign = text(value.get("id"))
        model = text(value.get("model"))
        more = mapping(value.get("metadata"))
        kept = ("id", "object", "created", "model", "choices", "usage", "system_fingerprint")
        made = request(said, model, value)
        made.pop("stream", None)
        if more:
            made["metadata"] = more
        return call(
            Parts(
                identity=own_id(self.name, foreign)
                if foreign
                else content_id(self.name, value, place),
                request=made,
                response=completion({name: value[name] for name in kept if name in value}),
                model=model or "unknown",
                time=instant(value.get("created"), "created"),
                session=text(more.get("session_id") or more.get("session")),
                tag=tagged(None, more.get("task")),
                usage=usage(value.get("usage")),
            ),
            place,
        )

    def _example(
        self,
        value: Mapping[str, Any],
        said: list[dict[str, Any]],
        asked: Mapping[str, Any],
        place: Place,
    ) -> Iterator[Item]:
        steps = [
            number
            for number, message in enumerate(said)
            if message["role"] == "assistant" and message.get("weight") != 0 and number
        ]
        if not steps:
            raise RecordError("a training example without an answer", "messages")
        clean = [{k: v for k, v in message.items() if k != "weight"} for message in said]
        more = mapping(value.get("metadata"))
        line = number_in(place.position)
        session = text(more.get("session_id"))
        if session is None and len(steps) > 1:
            session = chain({"messages": clean})
        for step in steps:
            yield call(
                Parts(
                    identity=content_id(self.name, value, place, step),
                    request=request(clean[:step], text(value.get("model")), asked),
                    response=completion([clean[step]]),
                    model=text(value.get("model")) or "unknown",
                    time=undated(line * 1000 + min(step, 999)),
                    session=session,
                    tag=tagged(None, more.get("task")),
                ),
                place,
            )
