"""`/v1/responses`, whole and as a stream: every object and every event is held to the types of OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.actors.serving.fields import SamplingFields
from penstock.actors.serving.responses_input import chat_of
from penstock.actors.serving.responses_protocol import ResponsesRequest

from ..fake_engine import FakeEngine, spoken
from .served import Connection, Paced, Served, turns
from .test_chat import CALL, SCHEMA, THOUGHT, TWO_CALLS, prompt_of, says
from .test_streams import MESSAGE, DeadEngine, dies

RESPONSES = "/v1/responses"
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "description": "Tells it."}
TIME = {"type": "function", "name": "get_time"}
LOGPROBS = "message.output_text.logprobs"
JSON_FORMAT = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


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
        assert type(EVENT.validate_python(event)).model_fields["type"].annotation.__args__ == (event["type"],)
    return events


def stream(served: Served, **body: Any) -> list[dict[str, Any]]:
    """The events of one request."""
    response = asyncio.run(served.post(RESPONSES, **({"input": "hello", "stream": True} | body)))
    assert response.status_code == 200, response.text
    return events_of(response.content)


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """The response without what is another's each time."""
    items = [
        {name: value for name, value in item.items() if name not in ("id", "call_id")} for item in response["output"]
    ]
    return response | {"output": items, "id": "", "created_at": 0, "completed_at": 0}


def said(events: list[dict[str, Any]], kind: str) -> str:
    """The text of all deltas of a kind."""
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


def test_an_answer_has_openais_shape() -> None:
    answer = ask(says("hi"), model="demo", metadata={"a": "b"}, store=True, instructions="Be brief.")
    assert answer["id"].startswith("resp_")
    assert (answer["status"], answer["store"], answer["metadata"]) == ("completed", False, {"a": "b"})
    (message,) = answer["output"]
    assert message["content"] == [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}]
    assert (message["role"], message["status"]) == ("assistant", "completed")
    usage = answer["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (19, 3, 22)


def test_the_events_of_a_text_come_in_openais_order() -> None:
    events = stream(says("hi", Paced))
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("hallo", {}),
        ("hallo", {"stop": ["lx", "o"]}),
        ("grüße, 世界 🎉", {"include": [LOGPROBS], "top_logprobs": 1}),
        ("", {}),
        (THOUGHT, {}),
        (THOUGHT + TWO_CALLS, {"tools": [WEATHER, TIME], "include": [LOGPROBS]}),
        (TWO_CALLS + "\nand < that\n was <b>it", {"tools": [WEATHER, TIME]}),
        (TWO_CALLS + "\nand < that\n was <b>it", {"tools": [WEATHER, TIME], "include": [LOGPROBS]}),
        (TWO_CALLS, {"tools": [WEATHER, TIME], "parallel_tool_calls": False}),
        (TWO_CALLS, {"tools": [WEATHER, TIME], "tool_choice": "none"}),
        (CALL, {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}}),
        ('{"a": 1}', {"text": JSON_FORMAT}),
        ("<think>never ends", {"max_output_tokens": 5}),
    ],
)
def test_a_stream_ends_with_the_whole_answer_and_its_events_add_up_to_it(text: str, body: dict[str, Any]) -> None:
    served = says(text, Paced, reasoning_parser="qwen3")
    whole, events = ask(served, **body), stream(served, **body)
    response = events[-1]["response"]
    assert plain(response) == plain(whole)
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [(event["output_index"], event["item"]) for event in done] == list(enumerate(response["output"]))
    texts = [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"]
    assert said(events, "output_text") == "".join(texts)
    calls = [item["arguments"] for item in response["output"] if item["type"] == "function_call"]
    assert said(events, "function_call_arguments") == "".join(calls)


def test_items_stand_in_the_order_of_the_text() -> None:
    served = says(THOUGHT + TWO_CALLS + "\nSo.", reasoning_parser="qwen3")
    answer = ask(served, tools=[WEATHER, TIME])
    kinds = [item["type"] for item in answer["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call", "message"]
    assert answer["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm, 17 and 25."}]
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == len("Hm, 17 and 25.")
    assert json.loads(answer["output"][2]["arguments"]) == {"city": "Paris"}


def test_a_calls_arguments_come_while_they_are_written() -> None:
    events = stream(says(CALL, Paced), tools=[WEATHER])
    assert sum(event["type"] == "response.function_call_arguments.delta" for event in events) > 5


@pytest.mark.parametrize("streams", [False, True])
def test_a_call_that_breaks_off_is_text_in_the_response(streams: bool) -> None:
    served = says(CALL[:-20], Paced)
    answer = stream(served, tools=[WEATHER])[-1]["response"] if streams else ask(served, tools=[WEATHER])
    assert [item["type"] for item in answer["output"]] == ["message"]
    assert answer["output"][0]["content"][0]["text"] == CALL[:-20]


def test_what_an_answer_said_goes_on_as_the_next_ones_input() -> None:
    served = says(THOUGHT + CALL, reasoning_parser="qwen3")
    output = ask(served, tools=[WEATHER])["output"]
    result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "sunny"}
    ask(served, input=[{"role": "user", "content": "hello"}, *output, result], tools=[WEATHER])
    assert prompt_of(served).endswith("<|user|>hello<|end|><|assistant|>42<|end|><|system|>sunny<|end|><|assistant|>")


def test_items_become_the_messages_of_a_chat() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    items: list[Any] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": "hello", "id": None},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Well.", "annotations": []}],
        },
        *(call, call | {"call_id": "2", "status": "completed"}),
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "sunny"}]},
        {"type": "function_call_output", "call_id": "2", "output": "late"},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Or yes."},
    ]
    body = ResponsesRequest.model_validate_json(json.dumps({"input": items, "instructions": "Rhyme."}))
    messages = [message.model_dump(exclude_none=True) for message in chat_of(body).messages]
    assert [message["role"] for message in messages] == [
        *("system", "developer", "user", "assistant", "tool", "tool", "assistant", "assistant")
    ]
    assert messages[3]["reasoning_content"] == "Hm."
    assert [each["id"] for each in messages[3]["tool_calls"]] == ["1", "2"]
    assert [message["content"] for message in messages[4:7]] == [
        *([{"type": "text", "text": text}] for text in ("sunny", "late", "No."))
    ]


def test_an_answer_that_is_cut_says_so() -> None:
    served = Served(Paced(lambda request: spoken(request, "h", "i", reason="length")))
    for answer in (ask(served), (events := stream(served))[-1]["response"]):
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert answer["output"][0]["status"] == "incomplete"
    assert events[-1]["type"] == "response.incomplete"


def test_logprobs_are_of_the_texts_tokens_alone() -> None:
    served = says(THOUGHT + CALL, reasoning_parser="qwen3")
    answer = ask(served, tools=[WEATHER], include=[LOGPROBS], top_logprobs=1)
    (text,) = answer["output"][1]["content"]
    assert [each["token"] for each in text["logprobs"]] == ["4", "2"]
    assert text["logprobs"][0]["top_logprobs"] == [{"token": "A", "logprob": -0.5, "bytes": [65]}]


def test_a_schema_is_a_grammar_and_named_where_it_is_wrong() -> None:
    served = says('{"a": 1}')
    ask(served, text=JSON_FORMAT)
    assert json.loads(served.engine.requests[-1].sampling.grammar.removeprefix("json\n")) == SCHEMA
    wrong = {"format": JSON_FORMAT["format"] | {"schema": {"type": "object", "not": {}}}}
    error = served.refusal(RESPONSES, input="a", text=wrong)
    assert (error["param"], error["message"]) == (
        "text.format",
        "text.format: the json uses 'not', which can't be enforced",
    )


def test_sampling_fields_reach_the_engine() -> None:
    served = says("hi")
    ask(served, max_output_tokens=7, temperature=0.5, top_k=3, repetition_penalty=1.1, min_tokens=1)
    (request,) = served.engine.requests
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_k) == (7, 0.5, 3)


def test_what_clients_always_send_is_taken() -> None:
    served = says("hi")
    codex: dict[str, Any] = {"tool_choice": "auto", "tools": [], "parallel_tool_calls": False, "store": False}
    codex |= {"reasoning": {"effort": "medium", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    codex |= {"prompt_cache_key": "a", "text": {"verbosity": "low"}, "client_metadata": {"a": "b"}}
    answer = ask(served, **codex, service_tier="auto", truncation="disabled", background=False, conversation=None)
    assert answer["reasoning"] == {"effort": None, "summary": None}
    ask(served, reasoning=None, stream_options=None, previous_response_id=None)
    stream(served, stream_options={"include_obfuscation": True})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "the server keeps nothing: send the item itself"),
        ({"input": [{"type": "web_search_call", "id": "1"}]}, "is of type 'web_search_call'; an item may be one of"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "only text can"),
        ({"input": [{"role": "user"}]}, "input.0 is a message without content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "without call_id and arguments"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "nothing that the model could read"),
        ({"input": "a" * 600}, "prompt: has 603 tokens; the maximum"),
        ({"previous_response_id": "resp_1"}, "the server keeps nothing; send the whole conversation"),
        ({"conversation": "conv_1"}, "the server keeps nothing"),
        ({"prompt": {"id": "p"}}, "the server keeps nothing"),
        ({"background": True}, "nothing runs on without its request"),
        ({"truncation": "auto"}, "is refused, never cut"),
        ({"max_tokens": 4}, "max_tokens is 4: it is called max_output_tokens here"),
        ({"max_output_token": 4}, "did you mean 'max_output_tokens'"),
        ({"include": ["message.output_text.logprob"]}, "include.0 is 'message.output_text.logprob'"),
        ({"n": 2}, "n is 2: it isn't supported"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type is 'web_search': input should be 'function'"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "g"}}, "names 'g'"),
        ({"top_logprobs": 2}, "include doesn't hold"),
        ({"text": {"format": {"type": "json_schema"}}}, "json_schema needs a name and a schema"),
        ({"text": JSON_FORMAT, "structured_outputs": {"regex": "a"}}, "text.format, structured_outputs and"),
        ({"model": "gpt-9"}, "does not exist"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_value(body: dict[str, Any], reason: str) -> None:
    served = says("hi")
    status = 404 if "model" in body else 400
    assert reason in served.refusal(RESPONSES, status, **({"input": "hello"} | body))["message"]
    assert served.engine.requests == []


def test_an_input_that_is_too_long_can_be_told_by_a_client() -> None:
    error = says("hi").refusal(RESPONSES, input="a" * 600)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


def test_an_effort_of_none_asks_the_template_for_no_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    served, told = says("hi"), list[Any]()
    template = served.service.tokenizer.chat_prompt

    def noted(messages: list[Any], **options: Any) -> str:
        told.append(options.get("enable_thinking"))
        return template(messages, **options)

    monkeypatch.setattr(served.service.tokenizer, "chat_prompt", noted)
    for effort in ("none", "low"):
        ask(served, reasoning={"effort": effort})
    assert told == [False, None]


async def begun() -> tuple[Served, Connection, asyncio.Task[None]]:
    """A stream whose first token has come, and no more of it."""
    served = Served(FakeEngine(lambda request: spoken(request, "x", reason=None)))
    connection = Connection.of(served.app, RESPONSES, input="hello", stream=True)
    running = asyncio.ensure_future(connection.run())
    await turns()
    return served, connection, running


def test_an_engine_that_dies_in_the_middle_is_a_failed_response() -> None:
    async def die() -> bytes:
        served, connection, running = await begun()
        dies(served.engine)
        await asyncio.wait_for(running, 5)
        return connection.answer

    last = events_of(asyncio.run(die()))[-1]
    assert last["type"] == "response.failed"
    assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "server_error")
    assert MESSAGE in last["response"]["error"]["message"]
    assert last["response"]["output"][0]["content"][0]["text"] == "x"


def test_a_client_that_leaves_ends_its_request() -> None:
    async def leave() -> Served:
        served, connection, running = await begun()
        connection.leave()
        await asyncio.wait_for(running, 5)
        return served

    served = asyncio.run(leave())
    assert served.engine.aborted == [request.request_id for request in served.engine.requests]
    assert served.service.admission.num_requests == 0


@pytest.mark.parametrize("streams", [False, True])
def test_a_dead_engine_is_a_503_before_anything_is_sent(streams: bool) -> None:
    assert Served(DeadEngine()).refusal(RESPONSES, 503, input="hello", stream=streams)["code"] == "engine_dead"


def test_every_sampling_field_of_chat_is_known() -> None:
    assert SamplingFields.model_fields.keys() <= ResponsesRequest.model_fields.keys()
    assert says("hi").get("/openapi.json").json()["paths"][RESPONSES]["post"]["responses"]["200"]
