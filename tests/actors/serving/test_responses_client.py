"""OpenAI's own client at `/v1/responses`, over an engine whose every token is known beforehand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import openai
import pytest
from pydantic import BaseModel

from penstock.scheduler.messages import NewRequest, TokenEvent

from ..fake_engine import spoken
from .served import Paced, Served
from .test_chat import CALL, says

T = TypeVar("T")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}


class Answer(BaseModel):
    """What the model is to say."""

    sign: Literal["+", "-"]
    is_even: bool


JSON = '{"sign": "+", "is_even": true}'


def through(served: Served, use: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
    """What a client makes of a server."""

    async def used() -> T:
        http: Any = served.client()
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="x", max_retries=0, http_client=http
        ) as client:
            return await use(client)

    return asyncio.run(used())


def test_a_text_is_answered() -> None:
    answer = through(says("hi"), lambda client: client.responses.create(model="demo", input="hello"))
    assert (answer.output_text, answer.status, answer.error) == ("hi", "completed", None)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 11


def test_a_pydantic_model_is_parsed_whole_and_as_a_stream() -> None:
    async def parsed(client: openai.AsyncOpenAI) -> list[Answer | None]:
        whole = await client.responses.parse(model="demo", input="hello", text_format=Answer)
        async with client.responses.stream(model="demo", input="hello", text_format=Answer) as stream:
            kinds = [event.type async for event in stream]
            assert kinds.count("response.output_text.delta") > 5
            return [whole.output_parsed, (await stream.get_final_response()).output_parsed]

    served = says(JSON, Paced)
    assert through(served, parsed) == [Answer(sign="+", is_even=True)] * 2
    assert "is_even" in served.engine.requests[0].sampling.grammar


def test_the_streams_deltas_are_what_the_client_adds_up() -> None:
    async def streamed(client: openai.AsyncOpenAI) -> tuple[str, str]:
        async with client.responses.stream(model="demo", input="hello") as stream:
            snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
            return snapshots[-1], (await stream.get_final_response()).output_text

    assert through(says("grüße 🎉", Paced), streamed) == ("grüße 🎉", "grüße 🎉")


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_loop_goes_round(streams: bool) -> None:
    def script(request: NewRequest) -> list[TokenEvent]:
        prompt = bytes(token for token in request.prompt_token_ids.tolist() if token < 256)
        return spoken(request, *("It is sunny." if b"sunny" in prompt else CALL))

    async def turn(client: openai.AsyncOpenAI, items: list[Any]) -> Any:
        fields: dict[str, Any] = {"model": "demo", "input": items, "tools": [WEATHER]}
        if not streams:
            return await client.responses.create(**fields)
        async with client.responses.stream(**fields) as stream:
            return await stream.get_final_response()

    async def loop(client: openai.AsyncOpenAI) -> str:
        items: list[Any] = [{"role": "user", "content": "How is it in Paris?"}]
        for _ in range(3):
            answer = await turn(client, items)
            items += [item.to_dict() for item in answer.output]
            calls = [item for item in answer.output if item.type == "function_call"]
            for call in calls:
                assert json.loads(call.arguments) == {"city": "Paris"}
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
            if not calls:
                return str(answer.output_text)
        raise AssertionError("it calls on and on")

    assert through(Served(Paced(script)), loop) == "It is sunny."


@pytest.mark.parametrize("streams", [False, True])
def test_errors_are_the_clients_own(streams: bool) -> None:
    async def asked(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="gpt-9", input="hello", stream=streams)
        with pytest.raises(openai.BadRequestError, match="the server keeps nothing"):
            await client.responses.create(model="demo", input="a", previous_response_id="resp_1", stream=streams)

    through(says("hi"), asked)
