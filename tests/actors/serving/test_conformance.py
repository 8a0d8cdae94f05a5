"""OpenAI's own client against a real server, field by field, whole and as a stream; and what it reads, raw."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any, Literal

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from ..rig import eventually
from .live_server import LiveServer
from .served import events_of, joined_chat, joined_completions

QUESTION: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
CITY["additionalProperties"] = False
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": CITY}}
SEVEN = ord("7")  # a byte is a token of the demo model


@pytest.fixture(scope="module")
def client(demo_server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{demo_server.port}/v1", api_key="none", max_retries=0, timeout=60)


def chat(client: openai.OpenAI, **fields: Any) -> tuple[ChatCompletion, list[Any]]:
    """A greedy answer, whole, and the chunks of the same one as a stream; the client has read both."""
    fields = {"model": "demo", "messages": QUESTION, "temperature": 0} | fields
    create: Any = client.chat.completions.create  # its overloads know no fields by name alone
    whole: ChatCompletion = create(**fields)
    with create(stream=True, **fields) as stream:
        chunks = [chunk.model_dump(exclude_unset=True) for chunk in stream]
    return whole, chunks


def check_chat(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    """The whole answer, which the stream's deltas have added up to."""
    whole, chunks = chat(client, **fields)
    joined = joined_chat(chunks)
    choices = [choice.model_dump(exclude_unset=True) for choice in whole.choices]
    for choice in (*joined.values(), *choices):
        for call in choice["message"].get("tool_calls", ()):
            assert call.pop("id").startswith("call")
    assert joined == {choice["index"]: choice for choice in choices}
    return whole


def check_completion(client: openai.OpenAI, **fields: Any) -> Completion:
    """The same for completions."""
    fields = {"model": "demo", "prompt": "17 + 25 =", "temperature": 0} | fields
    create: Any = client.completions.create
    whole: Completion = create(**fields)
    with create(stream=True, **fields) as stream:
        joined = joined_completions([chunk.model_dump(exclude_unset=True) for chunk in stream])
    assert joined == {choice.index: choice.model_dump(exclude_unset=True) for choice in whole.choices}
    return whole


def test_the_model_is_there(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "penstock"


def test_a_question_is_answered(client: openai.OpenAI) -> None:
    answer = check_chat(client)
    assert answer.choices[0].message.content == "42"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"stop": ["2"]},
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"temperature": 1.0, "seed": 7, "n": 2},
        {"temperature": 0.8, "seed": 7, "top_p": 0.9},
        {"presence_penalty": 1.5, "frequency_penalty": 1.5, "max_tokens": 8},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 3},
        {"response_format": {"type": "text"}},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True, "service_tier": "auto"},
        {"extra_body": {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1}, "temperature": 1.0},
        {"extra_body": {"ignore_eos": True, "min_tokens": 4, "return_token_ids": True}, "max_tokens": 12},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_each_field_of_chat_is_the_same_whole_and_as_a_stream(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    check_chat(client, **fields)


def test_fields_of_chat_do_what_they_say(client: openai.OpenAI) -> None:
    stopped = check_chat(client, stop=["2"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("4", "stop")
    cut = check_chat(client, max_completion_tokens=1).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("4", "length")
    biased = check_chat(client, logit_bias={str(SEVEN): 100}, max_tokens=3).choices[0]
    assert biased.message.content == "777"
    scored = check_chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert scored is not None
    assert scored.content is not None
    assert [entry.token for entry in scored.content] == ["4", "2", "<|end|>"]
    assert all(entry.top_logprobs[0].token == entry.token for entry in scored.content)
    long = check_chat(client, max_tokens=12, extra_body={"ignore_eos": True}).usage
    assert long is not None
    assert long.completion_tokens == 12


def test_a_seed_decides_and_n_answers_differ(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"temperature": 5.0, "seed": 11, "n": 3, "max_tokens": 8}
    first, second = (check_chat(client, **fields) for _ in range(2))
    assert [choice.message for choice in first.choices] == [choice.message for choice in second.choices]
    assert len({choice.message.content for choice in first.choices}) == 3


def test_json_is_json(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    answer = check_chat(client, response_format=schema, max_tokens=40).choices[0]
    assert json.loads(answer.message.content or "")["city"] in ("Paris", "Rome")
    assert answer.finish_reason == "stop"
    anything = check_chat(client, response_format={"type": "json_object"}, max_tokens=20).choices[0]
    assert (anything.message.content or "").startswith("{")


def test_the_clients_own_parser_reads_what_it_asked_for(client: openai.OpenAI) -> None:
    class Answer(BaseModel):
        sign: Literal["+", "-"]
        is_even: bool

    fields: dict[str, Any] = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    parsed = client.chat.completions.parse(response_format=Answer, **fields).choices[0].message.parsed
    assert isinstance(parsed, Answer)
    with client.chat.completions.stream(response_format=Answer, **fields) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}], ids=str)
def test_a_forced_call_is_made(client: openai.OpenAI, choice: Any) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER, TIME], "tool_choice": choice, "parallel_tool_calls": False}
    answer = check_chat(client, max_tokens=120, **fields).choices[0]
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert call.function.name == "get_time" or choice == "required"
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ["17 + 25 =", "12 + 30 ="]},
        {"prompt": list(b"17 + 25 =")},
        {"prompt": [list(b"17 + 25 ="), list(b"1 + 1 =")]},
        {"n": 2, "best_of": 2},
        {"echo": True},
        {"echo": True, "max_tokens": 0, "logprobs": 1},
        {"echo": True, "logprobs": 2},
        {"logprobs": 3},
        {"stop": "2"},
        {"temperature": 1.0, "seed": 3, "n": 2, "top_p": 0.9},
        {"logit_bias": {str(SEVEN): 100}, "max_tokens": 3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "user": "me"},
        {"extra_body": {"ignore_eos": True, "return_token_ids": True}, "max_tokens": 20},
        {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_each_field_of_completions_is_the_same_whole_and_as_a_stream(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    check_completion(client, **fields)


def test_fields_of_completions_do_what_they_say(client: openai.OpenAI) -> None:
    both = check_completion(client, prompt=["17 + 25 =", "12 + 30 ="])
    assert [choice.text for choice in both.choices] == [" 42", " 42"]
    assert check_completion(client, echo=True).choices[0].text == "17 + 25 = 42"
    scored = check_completion(client, echo=True, max_tokens=0, logprobs=1).choices[0]
    assert scored.logprobs is not None
    assert scored.logprobs.tokens == list("17 + 25 =")
    assert scored.logprobs.token_logprobs is not None
    assert scored.logprobs.token_logprobs[0] is None
    assert max(each for each in scored.logprobs.token_logprobs if each is not None) <= 0
    assert check_completion(client, stop="2").choices[0].text == " 4"


def test_the_usage_of_a_stream_is_that_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole, chunks = chat(client)
    fields: dict[str, Any] = {"model": "demo", "messages": QUESTION, "temperature": 0, "stream": True}
    stream = client.chat.completions.create(stream_options={"include_usage": True}, **fields)
    *others, last = list(stream)
    assert whole.usage is not None
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in others)
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"n": 1000}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, openai.BadRequestError),
        ({"extra_body": {"structured_outputs": {"json": {"type": 5}}}}, openai.BadRequestError),
    ],
    ids=str,
)
def test_errors_are_the_clients_own(client: openai.OpenAI, fields: Any, error: type[openai.APIStatusError]) -> None:
    fields = {"model": "demo", "messages": QUESTION} | fields
    for streams in (False, True):
        with pytest.raises(error) as raised:
            client.chat.completions.create(stream=streams, **fields)
        assert raised.value.type == "invalid_request_error"
        assert raised.value.message


def test_what_is_not_supported_is_said(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="embeddings can't be had here"):
        client.embeddings.create(model="demo", input="a")
    with pytest.raises(openai.BadRequestError, match="suffix isn't supported"):
        client.completions.create(model="demo", prompt="a", suffix="b")
    with pytest.raises(openai.BadRequestError, match="best_of is 3"):
        client.completions.create(model="demo", prompt="a", best_of=3)


def test_the_same_questions_are_answered_as_responses(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "demo", "input": "What is 17 + 25?", "temperature": 0}
    assert client.responses.create(**fields).output_text == "42"
    with client.responses.stream(**fields) as stream:
        assert stream.get_final_response().output_text == "42"
    tool: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
    answer = client.responses.create(**fields, tools=[tool], tool_choice="required", max_output_tokens=120)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    cut = client.responses.create(**fields, max_output_tokens=1)
    assert (cut.status, cut.output_text) == ("incomplete", "4")


def test_many_clients_at_once_get_their_own_answers(demo_server: LiveServer) -> None:
    async def ask() -> list[str | None]:
        url = f"http://127.0.0.1:{demo_server.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:

            async def answer(number: int) -> str | None:
                messages: list[Any] = [{"role": "user", "content": f"What is {number} + 1?"}]
                reply = await client.chat.completions.create(model="demo", messages=messages, temperature=0)
                return reply.choices[0].message.content

            return await asyncio.gather(*(answer(number) for number in range(10, 42)))

    assert asyncio.run(ask()) == [str(number + 1) for number in range(10, 42)]


def test_a_stream_that_the_client_closes_ends_its_request(client: openai.OpenAI, demo_server: LiveServer) -> None:
    fields: dict[str, Any] = {"model": "demo", "prompt": "a", "max_tokens": 490, "extra_body": {"ignore_eos": True}}
    with client.completions.create(stream=True, **fields) as stream:
        next(iter(stream))
    eventually(lambda: demo_server.metrics()["requests_running"] == 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_server_sent_events_to_the_byte(demo_server: LiveServer, path: str) -> None:
    body = {"prompt": "17 + 25 ="} if path == "/v1/completions" else {"messages": QUESTION}
    options = {"include_usage": True, "continuous_usage_stats": True}
    connection = http.client.HTTPConnection("127.0.0.1", demo_server.port, timeout=60)
    connection.request("POST", path, json.dumps(body | {"stream": True, "temperature": 0, "stream_options": options}))
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["transfer-encoding"] == "chunked"
    events = events_of(response.read())
    assert all(event["usage"]["prompt_tokens"] for event in events)
    assert events[-1]["choices"] == []
    connection.request("GET", "/version")  # the connection is still good
    assert connection.getresponse().status == 200
    connection.close()


def test_tokens_are_counted_and_read_back(client: openai.OpenAI, demo_server: LiveServer) -> None:
    root = f"http://127.0.0.1:{demo_server.port}"
    counted: Any = client.post(f"{root}/tokenize", cast_to=object, body={"prompt": "17 + 25 ="})
    assert counted["count"] == 9
    read: Any = client.post(f"{root}/detokenize", cast_to=object, body={"tokens": counted["tokens"]})
    assert read["prompt"] == "17 + 25 ="
