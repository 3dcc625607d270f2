"""LangSmith runs, from a bulk export (Parquet) or the runs API (JSON)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infra.calls.codec import RecordError
from trainers.readers.completions import completion
from trainers.readers.fields import embedded, first, instant, mapping, sequence, text
from trainers.readers.making import Parts, call, failure, own_id, request, tagged, usage
from trainers.readers.reader import Item, Place, Skipped

_THREAD = ("session_id", "thread_id", "conversation_id")


class LangsmithExport:
    """Runs of type ``llm`` are calls. A run's own ``session_id`` is its project, so the session is
    the thread that its metadata names, else its trace."""

    name = "langsmith"

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        return {"run_type", "inputs"} <= value.keys()

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        kind = text(value.get("run_type"))
        if kind is None:
            raise RecordError("the type of run is missing", "run_type")
        if kind != "llm":
            yield Skipped("a run that is no model's")
            return
        foreign = text(value.get("id"))
        if foreign is None:
            raise RecordError("a run without an id", "id")
        asked, outputs = mapping(value.get("inputs")), mapping(value.get("outputs"))
        extra = mapping(value.get("extra"))
        metadata = {**mapping(extra.get("metadata")), **mapping(value.get("metadata"))}
        options = mapping(extra.get("invocation_params"))
        model = text(
            first(options, "model", "model_name", "azure_deployment")
            or metadata.get("ls_model_name")
            or asked.get("model")
        )
        said = asked.get("messages")
        if said is None:
            prompts = sequence(asked.get("prompts"))
            if len(prompts) != 1:
                raise RecordError("the run's inputs have no messages", "inputs")
            said = prompts[0]
        told = value.get("error")
        failed = bool(told) and not outputs
        begun = instant(value.get("start_time"), "start_time")
        latency = 0.0
        if value.get("end_time") is not None:
            latency = max(0.0, (instant(value["end_time"], "end_time") - begun).total_seconds())
        made = {} if failed else completion(_answer(outputs), "outputs")
        yield call(
            Parts(
                identity=own_id(self.name, foreign),
                request=request(said, model, {**asked, **options}),
                response=made,
                error=failure("provider_error", told) if failed else None,
                model=model or "unknown",
                time=begun,
                session=text(first(metadata, *_THREAD) or value.get("thread_id"))
                or text(value.get("trace_id")),
                tag=tagged(value.get("tags"), metadata.get("task")),
                usage=usage(
                    value,
                    outputs.get("usage_metadata"),
                    outputs.get("usage"),
                    mapping(outputs.get("llm_output")).get("token_usage"),
                    _said_usage(outputs),
                ),
                latency_seconds=latency,
            ),
            place,
        )


def _answer(outputs: Mapping[str, Any]) -> Any:
    """Wrapped calls put the answer under ``output``, as text, a message or a completion."""
    if not outputs.keys() & {"choices", "generations", "message", "messages", "role", "content"}:
        only = first(outputs, "output", "result")
        if only is not None:
            return embedded(only)
    return outputs


def _said_usage(outputs: Mapping[str, Any]) -> Any:
    """LangChain keeps the tokens in the message."""
    given = sequence(outputs.get("generations"))
    inner = given[0] if given and isinstance(given[0], list) else given
    if not inner:
        return None
    message = mapping(mapping(inner[0]).get("message"))
    return (mapping(message.get("kwargs")) or message).get("usage_metadata")
