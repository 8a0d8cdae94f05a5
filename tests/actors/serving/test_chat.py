"""`/v1/chat/completions`, field by field, whole and as a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.actors.serving.fields import SamplingFields
from penstock.configs.serving import ServeConfig
from penstock.scheduler.messages import NewRequest, TokenEvent

from ..fake_engine import END, FakeEngine, OnEvent, scored, spoken
from .served import CHAT, HELLO, Paced, Served, joined_chat

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO_CALLS = f'Well.\n{CALL}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>'
THOUGHT = "<think>\nHm, 17 and 25.\n</think>\n\n42"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}


def says(text: str, engine: type[FakeEngine] = FakeEngine, **settings: Any) -> Served:
    """A model that always answers so, a character a token, each scored where that is asked for."""

    def script(request: NewRequest) -> list[TokenEvent]:
        events = spoken(request, *(text or [""]))
        for event in events:
            event.logprobs = [scored(event.token_ids.tolist())] if request.sampling.num_logprobs >= 0 else []
        return events

    return Served(engine(script), ServeConfig(served_model_name="demo", **settings))


def prompt_of(served: Served) -> str:
    """What the engine was asked last, as text."""
    tokenizer = served.service.tokenizer
    return tokenizer.decode(served.engine.requests[-1].prompt_token_ids.tolist(), skip_special_tokens=False)


def test_an_answer_has_openais_shape() -> None:
    answer = says("hi").ask(CHAT, messages=HELLO, model="demo")
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "demo")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    usage = {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11}
    assert answer["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 0}}


def test_the_chat_template_makes_the_prompt() -> None:
    served = says("hi")
    served.ask(CHAT, messages=[{"role": "developer", "content": "Be brief."}, *HELLO])
    assert prompt_of(served) == "<|system|>Be brief.<|end|><|user|>hello<|end|><|assistant|>"
    served.ask(CHAT, messages=HELLO, add_generation_prompt=False)
    assert prompt_of(served) == "<|user|>hello<|end|>"
    begun = [*HELLO, {"role": "assistant", "content": "Well"}]
    served.ask(CHAT, messages=begun, continue_final_message=True)
    assert prompt_of(served) == "<|user|>hello<|end|><|assistant|>Well"


def test_content_may_come_in_parts_of_text() -> None:
    served = says("hi")
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    served.ask(CHAT, messages=[{"role": "user", "content": parts}])
    assert "<|user|>hel\nlo<|end|>" in prompt_of(served)


def test_a_conversation_with_calls_and_their_results_is_taken() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": "1", "content": "sunny"}]
    served = says("hi")
    served.ask(CHAT, messages=messages)
    assert "sunny" in prompt_of(served)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages is missing"),
        ({"messages": "hello"}, "messages is 'hello'"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role is 'robot'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": "a" * 600}]}, "prompt: has 603 tokens; the maximum"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
        ({"top_logprobs": 2}, "top_logprobs is 2, but logprobs isn't true"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens, max_completion_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "names 'g'"),
        ({"tools": [{"type": "retrieval"}]}, "type"),
        ({"response_format": {"type": "json_schema"}}, "json_schema needs a schema"),
        ({"response_format": {"type": "yaml"}}, "yaml"),
        ({"response_format": JSON_SCHEMA, "tools": [TIME], "tool_choice": "required"}, "exclude each other"),
        ({"response_format": JSON_SCHEMA, "structured_outputs": {"regex": "a"}}, "exclude each other"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "may not hold 'chat_template'"),
        ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs"),
        ({"functions": []}, "functions is []: it isn't supported; leave it out, or null"),
        ({"reasoning_effort": "low"}, "reasoning_effort is 'low': it isn't supported"),
        ({"moderation": {"model": "m"}}, "moderation is {'model': 'm'}: it isn't supported; leave it out, or null"),
        ({"modalities": ["text", "audio"]}, "only text is generated here"),
        ({"guided_json": {}}, "unknown field 'guided_json'; did you mean 'structured_outputs'?"),
        ({"n": 65}, "65, at most 64"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_value(body: dict[str, Any], reason: str) -> None:
    served = says("hi")
    messages = {} if body == {} else {"messages": HELLO}
    assert reason in served.refusal(CHAT, **(messages | body))["message"]
    assert served.engine.requests == []


def test_a_conversation_that_is_too_long_can_be_told_by_a_client() -> None:
    for messages, max_tokens in (([{"role": "user", "content": "a" * 600}], 1), (HELLO, 505)):
        error = says("hi").refusal(CHAT, messages=messages, max_tokens=max_tokens)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "maximum context length is 5" in error["message"]


def test_openais_fields_that_ask_for_nothing_are_taken() -> None:
    empty = ("audio", "function_call", "functions", "prediction", "reasoning_effort", "verbosity", "web_search_options")
    nothing = dict.fromkeys(empty) | {"modalities": ["text"], "top_logprobs": 0, "logprobs": False}
    assert says("hi").ask(CHAT, messages=HELLO, **nothing)["choices"][0]["message"]["content"] == "hi"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_answers_length_has_two_names(name: str) -> None:
    served = says("hi")
    served.ask(CHAT, messages=HELLO, **{name: 7})
    assert served.engine.requests[0].max_tokens == 7


def test_an_answer_may_take_all_the_room_there_is() -> None:
    served = says("hi")
    served.ask(CHAT, messages=HELLO)
    assert served.engine.requests[0].max_tokens == 500 - 8  # the cache's tokens, without the prompt's


def test_sampling_fields_reach_the_engine() -> None:
    served = says("hi")
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "repetition_penalty": 1.1}
    fields |= {"presence_penalty": 0.3, "frequency_penalty": -0.2}
    served.ask(CHAT, messages=HELLO, logit_bias={"7": 5}, min_tokens=1, ignore_eos=True, **fields)
    (request,) = served.engine.requests
    assert {name: getattr(request.sampling, name) for name in fields} == fields
    assert (request.sampling.logit_bias, request.ignore_eos, request.sampling.min_tokens) == (((7, 5.0),), True, 1)


def test_n_answers_differ_by_their_seeds() -> None:
    served = says("hi")
    answer = served.ask(CHAT, messages=HELLO, n=3, seed=5, temperature=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in served.engine.requests] == [5, 6, 7]
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["usage"]["prompt_tokens"] == 8


def test_a_stop_string_ends_the_answer() -> None:
    (choice,) = says("hallo").ask(CHAT, messages=HELLO, stop=["ll"])["choices"]
    assert choice["message"]["content"] == "ha"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "ll")


def test_logprobs_stand_beside_every_token() -> None:
    served = says("hi")
    (choice,) = served.ask(CHAT, messages=HELLO, logprobs=True, top_logprobs=1)["choices"]
    likeliest = [{"token": "A", "logprob": -0.5, "bytes": [65]}, {"token": "h", "logprob": -1.0, "bytes": [104]}]
    assert choice["logprobs"]["content"][0] == likeliest[1] | {"top_logprobs": likeliest[:1]}
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["h", "i", "<|end|>"]
    (choice,) = served.ask(CHAT, messages=HELLO, logprobs=True)["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_response_format_is_a_grammar_that_is_checked_first() -> None:
    served = says("{}")
    served.ask(CHAT, messages=HELLO, response_format={"type": "text"})
    assert served.engine.requests[-1].sampling.grammar == ""
    served.ask(CHAT, messages=HELLO, response_format={"type": "json_object"})
    assert served.engine.requests[-1].sampling.grammar == "json_object\n"
    served.ask(CHAT, messages=HELLO, response_format=JSON_SCHEMA)
    grammar = served.engine.requests[-1].sampling.grammar
    assert json.loads(grammar.removeprefix("json\n")) == SCHEMA
    assert served.grammars == ["json_object\n", grammar]
    served.grammar_problem = "it is too wide"
    error = served.refusal(CHAT, messages=HELLO, response_format=JSON_SCHEMA)
    assert (error["message"], error["param"]) == ("it is too wide", "response_format")
    assert served.refusal(CHAT, messages=HELLO, structured_outputs={"regex": "a"})["param"] == "structured_outputs"
    assert served.refusal(CHAT, messages=HELLO, tools=[WEATHER], tool_choice="required")["param"] == "tools"


def test_a_schema_that_no_grammar_can_hold_is_refused_by_the_field_that_brings_it() -> None:
    schema = {"type": "object", "not": {}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for field, body in (
        ("response_format", {"response_format": wanted}),
        ("tools", {"tools": [tool], "tool_choice": "required", "response_format": {"type": "text"}}),
        ("structured_outputs", {"structured_outputs": {"json": schema}}),
    ):
        error = says("{}").refusal(CHAT, messages=HELLO, **body)
        assert error["message"] == f"{field}: the json uses 'not', which can't be enforced"
        assert error["param"] == field


def test_a_call_is_told_from_content() -> None:
    (choice,) = says(TWO_CALLS).ask(CHAT, messages=HELLO, tools=[WEATHER, TIME])["choices"]
    first, second = choice["message"]["tool_calls"]
    assert choice["message"]["content"] == "Well."
    assert choice["finish_reason"] == "tool_calls"
    assert (first["type"], first["function"]) == (
        "function",
        {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    )
    assert second["function"]["name"] == "get_time"
    assert first["id"] != second["id"]


def test_a_message_of_calls_alone_has_no_content() -> None:
    (choice,) = says(CALL).ask(CHAT, messages=HELLO, tools=[WEATHER])["choices"]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("body", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_the_text_stays_as_it_is(body: dict[str, Any]) -> None:
    served = says(CALL)
    (choice,) = served.ask(CHAT, messages=HELLO, **body)["choices"]
    assert choice["message"]["content"] == CALL
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_only_one_call_is_given_where_they_may_not_be_parallel() -> None:
    (choice,) = says(TWO_CALLS).ask(CHAT, messages=HELLO, tools=[WEATHER, TIME], parallel_tool_calls=False)["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]


@pytest.mark.parametrize(
    ("choice", "names", "stops_after_first"),
    [
        ("required", ["get_weather", "get_time"], False),
        ({"type": "function", "function": {"name": "get_time"}}, ["get_time"], True),
    ],
)
def test_a_forced_call_is_a_grammar(choice: Any, names: list[str], stops_after_first: bool) -> None:
    served = says(CALL)
    served.ask(CHAT, messages=HELLO, tools=[WEATHER, TIME], tool_choice=choice)
    kind, _, text = served.engine.requests[0].sampling.grammar.partition("\n")
    calls = json.loads(text)["format"]
    assert kind == "structural_tag"
    assert [json.loads(tag["begin"].partition('"name": ')[2].partition(",")[0]) for tag in calls["tags"]] == names
    assert calls["at_least_one"]
    assert calls["stop_after_first"] == stops_after_first
    assert calls["tags"][0]["content"]["json_schema"]["type"] == "object"


@pytest.mark.parametrize("parameters", [{}, {"title": "Nothing"}, {"properties": {"a": {"type": "integer"}}}])
def test_a_forced_calls_arguments_are_an_object_where_the_parameters_do_not_say_so(parameters: dict[str, Any]) -> None:
    served = says(CALL)
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    served.ask(CHAT, messages=HELLO, tools=[tool], tool_choice="required")
    (tag,) = json.loads(served.engine.requests[0].sampling.grammar.partition("\n")[2])["format"]["tags"]
    assert tag["content"]["json_schema"] == {"type": "object"} | parameters


def test_a_forced_call_without_an_object_for_arguments_is_refused() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
    error = says(CALL).refusal(CHAT, messages=HELLO, tools=[tool], tool_choice="required")
    assert (error["message"], error["param"]) == ("the parameters of 'f' have the type 'string', not 'object'", "tools")


def test_a_server_without_a_parser_refuses_tools() -> None:
    served = says(CALL, tool_call_parser=None)
    assert "tool_call_parser" in served.refusal(CHAT, messages=HELLO, tools=[TIME])["message"]
    assert "can't be forced" in served.refusal(CHAT, messages=HELLO, tools=[TIME], tool_choice="required")["message"]
    served.ask(CHAT, messages=HELLO, tools=[TIME], tool_choice="none")


def test_reasoning_is_split_off() -> None:
    served = says(THOUGHT, reasoning_parser="qwen3")
    message = served.ask(CHAT, messages=HELLO)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, 17 and 25.", "42")
    message = served.ask(CHAT, messages=HELLO, include_reasoning=False)["choices"][0]["message"]
    assert "reasoning_content" not in message
    assert message["content"] == "42"
    message = says(THOUGHT).ask(CHAT, messages=HELLO)["choices"][0]["message"]
    assert message["content"] == THOUGHT


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("hallo", {}),
        ("hallo", {"stop": ["lx", "o"]}),
        ("grüße, 世界 🎉", {"return_token_ids": True}),
        ("grüße", {"logprobs": True, "top_logprobs": 1, "n": 2}),
        ("", {}),
        (THOUGHT, {}),
        (THOUGHT, {"include_reasoning": False}),
        (THOUGHT + TWO_CALLS, {"tools": [WEATHER, TIME]}),
        (TWO_CALLS, {"tools": [WEATHER, TIME], "n": 2, "logprobs": True}),
        (TWO_CALLS, {"tools": [WEATHER, TIME], "parallel_tool_calls": False}),
        (TWO_CALLS, {"tools": [WEATHER, TIME], "tool_choice": "none"}),
        (CALL, {"tools": [WEATHER], "tool_choice": "required"}),
        ('{"a": 1}', {"response_format": JSON_SCHEMA}),
        ("<think>never ends", {"max_tokens": 5}),
    ],
)
def test_a_streams_deltas_add_up_to_the_whole_answer(text: str, body: dict[str, Any]) -> None:
    served = says(text, Paced, reasoning_parser="qwen3")
    whole = served.ask(CHAT, messages=HELLO, **body)
    events = served.stream(CHAT, messages=HELLO, **body)
    joined = joined_chat(events)
    for choice in (*joined.values(), *whole["choices"]):
        for call in choice["message"].get("tool_calls", ()):
            assert call.pop("id").startswith("call")
    assert joined == {choice["index"]: choice for choice in whole["choices"]}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1


def test_a_calls_arguments_come_while_they_are_written() -> None:
    events = says(CALL, Paced).stream(CHAT, messages=HELLO, tools=[WEATHER])
    pieces = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert len(pieces) > 5
    assert [piece for piece in pieces if "id" in piece] == pieces[:1]


def test_choices_of_a_stream_end_once_each() -> None:
    class Uneven(Paced):
        def submit(self, request: NewRequest, on_event: OnEvent) -> None:
            self.script = lambda request: spoken(request, *"ab" * (1 + 2 * len(self.requests)))
            super().submit(request, on_event)

    events = Served(Uneven()).stream(CHAT, messages=HELLO, n=2)
    ended = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert ended == [0, 1]
    assert events[-1]["choices"][0]["index"] == 1


def test_the_first_chunk_has_the_role_and_a_stream_ends_with_the_usage() -> None:
    served = says("hi", Paced)
    events = served.stream(CHAT, messages=HELLO, stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"]) == ([], 3)
    assert {event["usage"] for event in events[:-1]} == {None}
    running = served.stream(CHAT, messages=HELLO, stream_options={"continuous_usage_stats": True})
    assert [event["usage"]["completion_tokens"] for event in running] == [1, 3]


def test_the_prompt_may_come_as_token_ids() -> None:
    served = says("hi")
    answer = served.ask(CHAT, messages=HELLO, prompt_token_ids=[104, 105], return_token_ids=True)
    assert served.engine.requests[0].prompt_token_ids.tolist() == [104, 105]
    assert answer["prompt_token_ids"] == [104, 105]
    assert answer["choices"][0]["token_ids"] == [104, 105, END]


def test_without_a_tokenizer_a_conversation_is_refused() -> None:
    served = Served(has_tokenizer=False)
    assert "no tokenizer" in served.refusal(CHAT, messages=HELLO)["message"]


def test_every_sampling_field_of_completions_is_one_of_chat() -> None:
    document = Served().app.openapi()["components"]["schemas"]
    assert SamplingFields.model_fields.keys() <= document["ChatRequest"]["properties"].keys()


def test_without_a_tokenizer_a_conversations_ids_are_answered_with_ids() -> None:
    served = Served(has_tokenizer=False)
    body = {"messages": HELLO, "prompt_token_ids": [72, 73], "return_token_ids": True}
    (choice,) = served.ask(CHAT, **body)["choices"]
    assert (choice["token_ids"], choice["logprobs"]) == ([72, 73, END], None)
    assert joined_chat(served.stream(CHAT, **body))[0]["token_ids"] == [72, 73, END]


def test_without_a_tokenizer_logprobs_of_a_message_are_refused_before_the_engine_runs() -> None:
    served = Served(has_tokenizer=False)
    error = served.refusal(CHAT, messages=HELLO, prompt_token_ids=[72], logprobs=True)
    assert (error["param"], served.engine.requests) == ("logprobs", [])
