"""What a request to `/v1/responses` may say, and what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.actors.serving.fields import SamplingFields
from penstock.actors.serving.responses_input import chat_of
from penstock.actors.serving.responses_protocol import ResponsesRequest

from .responses_served import JSON_FORMAT, RESPONSES, TIME, WEATHER, ask, stream
from .test_chat import CALL, SCHEMA, THOUGHT, prompt_of, says


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


def test_every_sampling_field_of_chat_is_known() -> None:
    assert SamplingFields.model_fields.keys() <= ResponsesRequest.model_fields.keys()
    assert says("hi").get("/openapi.json").json()["paths"][RESPONSES]["post"]["responses"]["200"]


def test_what_clients_always_send_is_taken() -> None:
    served = says("hi")
    codex: dict[str, Any] = {"tool_choice": "auto", "tools": [], "parallel_tool_calls": False, "store": False}
    codex |= {"reasoning": {"effort": "medium", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    codex |= {"prompt_cache_key": "a", "text": {"verbosity": "low"}, "client_metadata": {"a": "b"}}
    answer = ask(served, **codex, service_tier="auto", truncation="disabled", background=False, conversation=None)
    assert answer["reasoning"] == {"effort": None, "summary": None}
    ask(served, reasoning=None, stream_options=None, previous_response_id=None)
    stream(served, stream_options={"include_obfuscation": True})


def test_an_effort_of_none_asks_the_template_for_no_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    served, asked = says("hi"), list[Any]()
    template = served.service.tokenizer.chat_prompt

    def noted(messages: list[Any], **options: Any) -> str:
        asked.append(options.get("enable_thinking"))
        return template(messages, **options)

    monkeypatch.setattr(served.service.tokenizer, "chat_prompt", noted)
    for effort in ("none", "low"):
        ask(served, reasoning={"effort": effort})
    assert asked == [False, None]


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
