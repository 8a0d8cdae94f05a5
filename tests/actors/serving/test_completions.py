"""`/v1/completions`, field by field, whole and as a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from penstock.actors.outputs import Logprob
from penstock.actors.serving.completion_logprobs import completion_logprobs
from penstock.actors.tokenizer import Tokenizer
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import ints

from ..fake_engine import DEMO, END, FakeEngine, scored, scored_echo, spoken
from .served import COMPLETIONS, Paced, Served, joined_completions


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.mark.parametrize("engine", [FakeEngine, Paced])
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hallo", ["hallo"]),
        (["ab", "c"], ["ab", "c"]),
        ([104, 105], ["hi"]),
        ([[104, 105], [106]], ["hi", "j"]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, texts: list[str], engine: type[FakeEngine]) -> None:
    answer = Served(engine()).ask(COMPLETIONS, prompt=prompt)
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    assert answer["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert answer["usage"]["completion_tokens"] == sum(map(len, texts)) + len(texts)  # an END each
    assert answer["usage"]["total_tokens"] == 2 * sum(map(len, texts)) + len(texts)
    assert (answer["object"], answer["model"]) == ("text_completion", "demo")


def test_a_prompt_may_come_as_prompt_token_ids(served: Served) -> None:
    assert served.ask(COMPLETIONS, prompt_token_ids=[104, 105])["choices"][0]["text"] == "hi"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "give one of prompt, prompt_token_ids; given are: none"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "given are: prompt, prompt_token_ids"),
        ({"prompt": ""}, "is empty"),
        ({"prompt": []}, "empty list"),
        ({"prompt": ["a", ""]}, "prompt 1: is empty"),
        ({"prompt": [[]]}, "is empty"),
        ({"prompt": [999]}, "holds the token id 999; ids go from 0 to 263"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt_token_ids": [-1]}, "holds -1"),
        ({"prompt": "a" * 512}, "has 512 tokens; the maximum context length is 512 tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix isn't supported"),
        ({"prompt": "a", "best_of": 2}, "best_of is 2"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of is 1"),
        ({"prompt": "a", "n": 0}, "n is 0"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "a", "max_tokens": "9"}, "max_tokens is '9'"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1"),
        ({"prompt": "a", "top_k": 1.5}, "top_k is 1.5"),
        ({"prompt": "a", "stop": ""}, "must not be empty"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "'x', which is no token id"),
        ({"prompt": "a", "logit_bias": {"7": 101}}, "101"),
        ({"prompt": "a", "logit_bias": {"264": 1}}, "ids go from 0 to 263"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options are for stream=true"),
        ({"prompt": "a", "temprature": 1}, "did you mean 'temperature'?"),
        ({"prompt": "a", "min_tokens": 9, "max_tokens": 8}, "min_tokens 9 is above max_tokens 8"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_value(served: Served, body: dict[str, Any], reason: str) -> None:
    error = served.refusal(COMPLETIONS, **body)
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"
    assert served.engine.requests == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("n", 0), ("n", 65), ("stop", ""), ("stop", ["a"] * 17), ("stop", "a" * 257), ("logprobs", 21)),
        *(("logit_bias", {"7": 101}), ("logit_bias", {"264": 1}), ("structured_outputs", {"regex": ""})),
        *(("prompt", []), ("prompt", ""), ("prompt", [999]), ("temperature", "high")),
    ],
)
def test_a_wrong_field_is_named(served: Served, field: str, value: Any) -> None:
    body: dict[str, Any] = {"prompt": "a", field: value}
    assert served.refusal(COMPLETIONS, **body)["param"] == field


def test_a_prompt_that_is_too_long_can_be_told_by_a_client(served: Served) -> None:
    for prompt in ("a" * 600, ["a", "a" * 600]):
        error = served.refusal(COMPLETIONS, prompt=prompt)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert error["message"].startswith("prompt 1: has 600 tokens; the maximum context length is 512 tokens")


def test_a_prompt_alone_has_no_number(served: Served) -> None:
    assert served.refusal(COMPLETIONS, prompt="")["message"] == "prompt: is empty; it needs at least 1 token"
    failed = TokenEvent("", "", 0, finish_reason="error", error="value 9 is above 8")
    served.engine.script = lambda request: [replace(failed, request_id=request.request_id)]
    assert served.refusal(COMPLETIONS, prompt="a")["message"] == "prompt: value 9 is above 8"


def test_best_of_equal_to_n_asks_for_nothing_more(served: Served) -> None:
    assert len(served.ask(COMPLETIONS, prompt="a", n=2, best_of=2)["choices"]) == 2


@pytest.mark.parametrize("engine", [FakeEngine, Paced])
def test_n_completions_of_each_prompt_are_numbered_through(engine: type[FakeEngine]) -> None:
    def counted(request: NewRequest) -> list[TokenEvent]:
        count = len(fake.requests)
        return spoken(request, *f"{count}{'x' * count}")

    fake = engine(counted)
    served = Served(fake)
    body: dict[str, Any] = {"prompt": ["a", "b"], "n": 2}
    whole = served.ask(COMPLETIONS, **body)["choices"]
    assert [choice["text"] for choice in whole] == ["1x", "2xx", "3xxx", "4xxxx"]
    fake.requests.clear()
    pieces = joined_completions(served.stream(COMPLETIONS, **body))
    assert [pieces[index] for index in range(4)] == whole


def test_sampling_fields_reach_the_engine(served: Served) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "repetition_penalty": 1.1}
    fields |= {"presence_penalty": 0.3, "frequency_penalty": -0.2}
    served.ask(COMPLETIONS, prompt="a", max_tokens=9, min_tokens=2, ignore_eos=True, logit_bias={"7": -3}, **fields)
    (request,) = served.engine.requests
    assert (request.max_tokens, request.ignore_eos, request.sampling.min_tokens) == (9, True, 2)
    assert request.sampling.logit_bias == ((7, -3.0),)
    assert {name: getattr(request.sampling, name) for name in fields} == fields


def test_the_fields_defaults_hold_where_a_request_says_nothing(served: Served) -> None:
    served.ask(COMPLETIONS, prompt="a")
    assert served.engine.requests[0].sampling.temperature == 1
    assert served.engine.requests[0].max_tokens == 16


@pytest.mark.parametrize("stop", ["ll", ["zz", "ll"]])
def test_a_stop_string_ends_the_text_before_it(served: Served, stop: Any) -> None:
    (choice,) = served.ask(COMPLETIONS, prompt="hallo", stop=stop)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ha", "stop", "ll")
    assert served.engine.aborted == [served.engine.requests[0].request_id]


def test_a_stop_string_may_stay_in_the_text(served: Served) -> None:
    body = {"prompt": "hallo", "stop": "ll", "include_stop_str_in_output": True}
    assert served.ask(COMPLETIONS, **body)["choices"][0]["text"] == "hall"


def test_special_tokens_are_text_where_they_are_asked_for() -> None:
    def inside(request: NewRequest) -> list[TokenEvent]:
        return [TokenEvent("", request.request_id, 0, ints([104, END, 105]), finish_reason="length")]

    served = Served(FakeEngine(inside))
    texts = [
        served.ask(COMPLETIONS, prompt="a", skip_special_tokens=skips)["choices"][0]["text"] for skips in (True, False)
    ]
    assert texts == ["hi", "h<|end|>i"]


def test_an_echo_puts_the_prompt_first(served: Served) -> None:
    assert served.ask(COMPLETIONS, prompt="ab", echo=True)["choices"][0]["text"] == "abab"
    assert served.ask(COMPLETIONS, prompt=[104, 105], echo=True)["choices"][0]["text"] == "hihi"


def test_an_echo_alone_scores_the_prompt() -> None:
    served = Served(FakeEngine(scored_echo))
    answer = served.ask(COMPLETIONS, prompt="abc", echo=True, max_tokens=0, logprobs=1)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -1.0, -1.0],
        "top_logprobs": [None, {"b": -1.0, "A": -0.5}, {"c": -1.0, "A": -0.5}],
        "text_offset": [0, 1, 2],
    }
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == 3


def test_logprobs_are_columns_with_offsets() -> None:
    served = Served(FakeEngine(scored_echo))
    body: dict[str, Any] = {"prompt": "ab"}
    columns = served.ask(COMPLETIONS, logprobs=1, **body)["choices"][0]["logprobs"]
    assert columns["tokens"] == ["a", "b", "<|end|>"]
    assert columns["token_logprobs"] == [-1.0] * 3
    assert columns["top_logprobs"] == [{"a": -1.0, "A": -0.5}, {"b": -1.0, "A": -0.5}, {"<|end|>": -1.0, "A": -0.5}]
    assert columns["text_offset"] == [0, 1, 2]
    columns = served.ask(COMPLETIONS, logprobs=0, echo=True, **body)["choices"][0]["logprobs"]
    assert columns["tokens"] == ["a", "b", "a", "b", "<|end|>"]
    assert columns["text_offset"] == [0, 1, 2, 3, 4]
    assert columns["top_logprobs"] is None


def scored_bytes(request: NewRequest) -> list[TokenEvent]:
    """Two tokens of one character, each scored beside two other tokens that are no text by themselves."""
    events = spoken(request, b"\xc3", b"\xa9", reason="length")
    for event in events:
        (token_id,) = event.token_ids.tolist()
        score = scored([token_id])
        score.top_ids, score.top_values = ints([[token_id, 0xE2, 0xE6]]), np.array([[-1, -3, -4]], np.float32)
        event.logprobs = [score]
    return events


def test_tokens_that_are_no_text_by_themselves_are_named_by_their_bytes() -> None:
    (choice,) = Served(FakeEngine(scored_bytes)).ask(COMPLETIONS, prompt="a", logprobs=3)["choices"]
    assert choice["text"] == "é"
    assert choice["logprobs"]["tokens"] == [r"bytes:\xc3", r"bytes:\xa9"]
    assert choice["logprobs"]["top_logprobs"] == [
        {token: -1.0, r"bytes:\xe2": -3.0, r"bytes:\xe6": -4.0} for token in (r"bytes:\xc3", r"bytes:\xa9")
    ]


def test_no_token_takes_the_place_of_the_scored_one_whose_text_it_shares() -> None:
    table = {900: Logprob(-1.0), 901: Logprob(-0.5)}
    columns = completion_logprobs([table], [900], [0], Tokenizer(DEMO), names_likeliest=True)
    assert columns.top_logprobs == [{"": -1.0}]


@pytest.mark.parametrize(
    ("body", "text", "offsets"),
    [
        ({"prompt": "né日x"}, "né日x", [0, 1, 1, 2, 2, 2, 3, 4]),
        ({"prompt": "é", "echo": True}, "éé", [0, 0, 1, 1, 2]),
        ({"prompt": "a", "echo": True, "skip_special_tokens": False}, "aa", [0, 1, 2]),
        ({"prompt": "<|user|>é!", "echo": True, "max_tokens": 0}, "<|user|>é!", [0, 8, 8, 9]),
        ({"prompt": [259, 104, 105, END], "echo": True, "max_tokens": 0}, "hi", [0, 0, 1, 2]),
    ],
)
def test_a_tokens_offset_is_where_its_text_begins(body: dict[str, Any], text: str, offsets: list[int]) -> None:
    served = Served(Paced(scored_echo))
    (choice,) = served.ask(COMPLETIONS, logprobs=1, **body)["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == (text, offsets)
    assert joined_completions(served.stream(COMPLETIONS, logprobs=1, **body))[0] == choice


def test_a_special_token_that_is_left_out_moves_no_offset() -> None:
    def inside(request: NewRequest) -> list[TokenEvent]:
        ids = [104, END, 105]
        return [TokenEvent("", request.request_id, 0, ints(ids), finish_reason="length", logprobs=[scored(ids)])]

    for skips, offsets in ((True, [0, 1, 1]), (False, [0, 1, 8])):
        body = {"prompt": "a", "logprobs": 1, "skip_special_tokens": skips}
        (choice,) = Served(FakeEngine(inside)).ask(COMPLETIONS, **body)["choices"]
        assert choice["logprobs"]["text_offset"] == offsets


def test_a_logprob_that_json_cannot_say_becomes_a_number() -> None:
    def impossible(request: NewRequest) -> list[TokenEvent]:
        (event,) = spoken(request, "a", reason="length")
        never = scored([97])
        never.values[0], never.top_values[0, 0] = -np.inf, np.nan
        event.logprobs = [never]
        return [event]

    served = Served(Paced(impossible))
    (choice,) = served.ask(COMPLETIONS, prompt="a", logprobs=1)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -9999.0, "A": -9999.0}]
    (piece,) = joined_completions(served.stream(COMPLETIONS, prompt="a", logprobs=1)).values()
    assert piece == choice


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hallo"},
        {"prompt": "grüße, 世界 🎉"},
        {"prompt": "hallo", "stop": "lx"},
        {"prompt": "hallo", "stop": ["o", "lx"], "logprobs": 1},
        {"prompt": "hallo", "echo": True},
        {"prompt": "hallo", "echo": True, "logprobs": 2},
        {"prompt": "hallo", "echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": "hallo", "echo": True, "max_tokens": 0},
        {"prompt": "grüße 🎉", "logprobs": 0, "echo": True},
        {"prompt": ["a", "bcd"], "n": 2, "logprobs": 1, "return_token_ids": True},
    ],
)
def test_a_streams_pieces_add_up_to_the_whole_answer(body: dict[str, Any]) -> None:
    served = Served(Paced(scored_echo))
    whole = served.ask(COMPLETIONS, **body)["choices"]
    events = served.stream(COMPLETIONS, **body)
    assert joined_completions(events) == {choice["index"]: choice for choice in whole}
    assert len(events) > len(whole) or body.get("max_tokens") == 0
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1


def test_a_stream_ends_with_the_usage_where_it_is_asked_for(served: Served) -> None:
    usage = served.ask(COMPLETIONS, prompt=["ab", "c"])["usage"]
    events = served.stream(COMPLETIONS, prompt=["ab", "c"], stream_options={"include_usage": True})
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], usage)
    assert {event["usage"] for event in events[:-1]} == {None}
    assert all("usage" not in event for event in served.stream(COMPLETIONS, prompt="a"))


def test_usage_may_come_with_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = Served(Paced()).stream(COMPLETIONS, prompt="abc", stream_options=options)
    numbers = [event["usage"]["completion_tokens"] for event in events]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (1, 4)


def test_token_ids_come_beside_the_text_where_they_are_asked_for(served: Served) -> None:
    (choice,) = served.ask(COMPLETIONS, prompt="ab", return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == [97, 98]
    assert choice["token_ids"] == [97, 98, END]
    assert "token_ids" not in served.ask(COMPLETIONS, prompt="ab")["choices"][0]


def test_a_request_may_name_itself(served: Served) -> None:
    assert served.ask(COMPLETIONS, prompt="a", request_id="mine")["id"] == "cmpl-mine"
    assert served.ask(COMPLETIONS, prompt="a")["id"].startswith("cmpl-")


def test_fields_that_change_nothing_are_taken(served: Served) -> None:
    served.ask(COMPLETIONS, prompt="a", user="me", metadata={"a": "b"}, store=False, service_tier="auto", suffix=None)
    served.ask(COMPLETIONS, prompt="a", prompt_cache_key="k", prompt_cache_options={"mode": "implicit", "ttl": "30m"})


def test_structured_outputs_are_checked_and_reach_the_engine(served: Served) -> None:
    served.ask(COMPLETIONS, prompt="a", structured_outputs={"choice": ["x", "y"]})
    assert served.engine.requests[0].sampling.grammar == served.grammars[0] == 'choice\n["x", "y"]'
    served.grammar_problem = "it is too wide"
    assert "too wide" in served.refusal(COMPLETIONS, prompt="a", structured_outputs={"regex": "a*"})["message"]
    both = {"regex": "a*", "choice": ["a"]}
    assert "exactly one" in served.refusal(COMPLETIONS, prompt="a", structured_outputs=both)["message"]


def test_without_a_tokenizer_ids_are_served_and_text_is_refused() -> None:
    served = Served(Paced(scored_echo), has_tokenizer=False)
    (choice,) = served.ask(COMPLETIONS, prompt=[97, 98], return_token_ids=True, logprobs=0)["choices"]
    assert (choice["token_ids"], choice["logprobs"]["tokens"]) == ([97, 98, END], ["97", "98", "257"])
    num_served = len(served.engine.requests)
    for body in ({"prompt": "a"}, {"prompt": [97], "echo": True}, {"prompt": [97], "stop": "b"}):
        assert "no tokenizer" in served.refusal(COMPLETIONS, **body)["message"]
    assert len(served.engine.requests) == num_served


def test_logprobs_of_more_tokens_than_one_event_holds_keep_their_order() -> None:
    def two_at_once(request: NewRequest) -> list[TokenEvent]:
        events = spoken(request, "ab", "cd", reason="length")
        for event in events:
            event.logprobs = [scored([token_id]) for token_id in event.token_ids.tolist()]
        return events

    (choice,) = Served(FakeEngine(two_at_once)).ask(COMPLETIONS, prompt="x", logprobs=0)["choices"]
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "d"]
    assert choice["logprobs"]["token_logprobs"] == [-1.0] * 4
