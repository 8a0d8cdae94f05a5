"""`/v1/responses`, whole and as a stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ..fake_engine import FakeEngine, spoken
from .responses_served import JSON_FORMAT, RESPONSES, TIME, WEATHER, ask, events_of, stream
from .served import Connection, Paced, Served, turns
from .test_chat import CALL, THOUGHT, TWO_CALLS, says
from .test_streams import MESSAGE, DeadEngine, dies

LOGPROBS = "message.output_text.logprobs"
FRAGMENTS = [
    *(CALL, '<tool_call>{"arguments": {"a": "<b"}, "name": "f"}', "<tool_call>", "</tool_call>", '{"'),
    *(THOUGHT, "<think>", "</think>", "<", "</", " ", "\n", "word", "é🎉"),
]


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


def told(response: dict[str, Any]) -> list[list[Any]]:
    """What the items say; of texts in a row one, for a call that broke off may have parted them."""
    items: list[list[Any]] = []
    for item in response["output"]:
        if item["type"] == "function_call":
            items.append([item["name"], item["arguments"]])
            continue
        text, tokens = item["content"][0]["text"], [each["token"] for each in item["content"][0].get("logprobs", ())]
        if items and items[-1][0] == item["type"] == "message":
            items[-1] = ["message", items[-1][1] + text, items[-1][2] + tokens]
        else:
            items.append([item["type"], text, tokens])
    return items


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=7), st.sampled_from([[], [LOGPROBS]]))
@settings(max_examples=40, derandomize=True, deadline=None, database=None)
def test_whatever_a_model_writes_a_stream_tells_it_as_the_whole_answer_does(words: list[str], include: Any) -> None:
    served = says("".join(words), Paced, reasoning_parser="qwen3")
    body = {"tools": [WEATHER, TIME], "include": include}
    whole, events = ask(served, **body), stream(served, **body)
    assert told(events[-1]["response"]) == told(whole)
    texts = [item for item in told(whole) if item[0] == "message" and include]
    assert all(len(tokens) == len(text.encode()) for _, text, tokens in texts)  # a byte is a token of the demo model


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
