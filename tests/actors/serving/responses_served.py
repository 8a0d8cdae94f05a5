"""What tests ask of `/v1/responses`: each object and each event is held to the types of OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from .served import Served
from .test_chat import SCHEMA

RESPONSES = "/v1/responses"
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "description": "Tells it."}
TIME = {"type": "function", "name": "get_time"}
JSON_FORMAT = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def ask(served: Served, **body: Any) -> dict[str, Any]:
    """A whole answer, as the client's type has it."""
    answer: dict[str, Any] = served.ask(RESPONSES, **({"input": "hello"} | body))
    Response.model_validate(answer, strict=True)
    return answer


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """A stream's events, whose frames say their types too and which are numbered."""
    frames = [frame.split("\n") for frame in stream.decode().split("\n\n")]
    assert frames.pop() == [""]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [f"event: {event['type']}" for event in events] == [head for head, _ in frames]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        assert type(_EVENT.validate_python(event)).model_fields["type"].annotation.__args__ == (event["type"],)
    return events


def stream(served: Served, **body: Any) -> list[dict[str, Any]]:
    """The events of one request."""
    response = asyncio.run(served.post(RESPONSES, **({"input": "hello", "stream": True} | body)))
    assert response.status_code == 200, response.text
    return events_of(response.content)
