"""What a client makes of an engine's events: text, logprobs, stop strings, several completions, times."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from penstock.actors.collect import collect
from penstock.actors.frontdesk import Arrival
from penstock.actors.outputs import Logprob, RequestOutput
from penstock.actors.prompts import Prompt
from penstock.configs.sampling import RequestOutputKind, SamplingParams
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import ints

from .fake_engine import END, FakeEngine, desk_of, echo, scored, spoken

Script = Callable[[NewRequest], Iterable[TokenEvent]]


def ask(engine: FakeEngine, prompt: Prompt = "?", tokenizer: bool = True, **params: object) -> list[RequestOutput]:
    """A snapshot of one answer after each event, until it is finished."""
    desk = desk_of(engine, tokenizer)
    (answer,) = desk.prepare([prompt], SamplingParams(**params))
    arrivals: list[Arrival] = []
    desk.submit(answer, arrivals.append)
    return [desk.accept(arrival).output() for arrival in arrivals if not answer.finished]


def says(*pieces: str | bytes, **options: str | None) -> FakeEngine:
    return FakeEngine(lambda request: spoken(request, *pieces, **options))  # type: ignore[arg-type]


def test_text_grows_with_the_events_and_the_end_of_sequence_is_a_token_without_text() -> None:
    outputs = ask(says("fo", "rty", " two"))
    assert [output.outputs[0].text for output in outputs] == ["fo", "forty", "forty two"]
    assert outputs[-1].outputs[0].token_ids == [*b"forty two", END]
    assert [output.finished for output in outputs] == [False, False, True]
    assert (outputs[-1].outputs[0].finish_reason, outputs[-1].outputs[0].stop_reason) == ("stop", None)


def test_a_snapshot_is_not_changed_by_what_follows() -> None:
    first, *_ = ask(says("a", "b"))
    assert (first.outputs[0].text, first.outputs[0].token_ids) == ("a", [97])


def test_half_a_character_waits_and_comes_out_as_a_mark_if_it_never_ends() -> None:
    assert [o.outputs[0].text for o in ask(says(b"a\xc3", b"\xa9"))] == ["a", "aé"]
    assert ask(says(b"a", b"\xc3", reason="length"))[-1].outputs[0].text == "a\ufffd"


def test_events_that_repeat_tokens_change_nothing() -> None:
    def script(request: NewRequest) -> list[TokenEvent]:
        first, second = spoken(request, "ab", "cd", reason=None)
        longer = TokenEvent("", request.request_id, 1, ints(list(b"bcdef")))
        return [first, first, longer, second, TokenEvent("", request.request_id, 6, finish_reason="length")]

    assert ask(FakeEngine(script))[-1].outputs[0].text == "abcdef"


def test_a_stop_string_across_tokens_ends_the_answer_and_aborts_the_request() -> None:
    engine = says("one S", "TO", "P two", " three", reason="length")
    outputs = ask(engine, stop=["STOP"])
    assert [output.outputs[0].text for output in outputs] == ["one ", "one ", "one "]
    completion = outputs[-1].outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "STOP")
    assert bytes(completion.token_ids) == b"one STOP"
    assert engine.aborted == [engine.requests[0].request_id]


def test_a_stop_string_may_stay_in_the_text() -> None:
    outputs = ask(says("one STOP two", reason=None), stop="STOP", include_stop_str_in_output=True)
    assert outputs[-1].outputs[0].text == "one STOP"


def test_what_was_held_back_for_a_stop_string_comes_with_the_end() -> None:
    assert [o.outputs[0].text for o in ask(says("a ST", "O", ""), stop=["STOP"])] == ["a ", "a ", "a STO"]


def test_a_stop_string_in_the_last_event_needs_no_abort() -> None:
    engine = says("a STOP b", reason="length")
    assert ask(engine, stop=["STOP"])[-1].outputs[0].text == "a "
    assert engine.aborted == []


def test_stop_strings_wait_for_min_tokens() -> None:
    assert ask(says(".a.b.c", reason="length"), stop=["."], min_tokens=3)[-1].outputs[0].text == ".a.b"


def test_a_stop_token_is_named_and_gives_no_text() -> None:
    def script(request: NewRequest) -> list[TokenEvent]:
        return [TokenEvent("", request.request_id, 0, ints(list(b"ab!")), finish_reason="stop", stop_reason=33)]

    (output,) = ask(FakeEngine(script), stop_token_ids=[33])
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("ab", 33)
    (whole,) = ask(FakeEngine(script), stop_token_ids=[33], include_stop_str_in_output=True)
    assert whole.outputs[0].text == "ab!"


def test_logprobs_name_the_sampled_token_and_the_likeliest() -> None:
    def script(request: NewRequest) -> list[TokenEvent]:
        event = TokenEvent("", request.request_id, 0, ints(list(b"xA")), finish_reason="length")
        event.logprobs = [scored([ord("x")]), scored([ord("A")])]
        event.prompt_logprobs = [scored([ord("b"), ord("c")], start=1)]
        event.num_cached_tokens = 2
        return [event]

    (output,) = ask(FakeEngine(script), "abc", logprobs=1, prompt_logprobs=1)
    completion = output.outputs[0]
    assert completion.cumulative_logprob == -2.0
    assert completion.logprobs is not None
    assert completion.logprobs[0] == {120: Logprob(-1.0, 2, "x"), 65: Logprob(-0.5, 1, "A")}
    assert completion.logprobs[1] == {65: Logprob(-1.0, 2, "A")}
    assert output.prompt_logprobs is not None
    assert [None if table is None else sorted(table) for table in output.prompt_logprobs] == [None, [65, 98], [65, 99]]
    assert output.num_cached_tokens == 2


def test_n_completions_are_n_requests_and_one_answer() -> None:
    engine = FakeEngine(lambda request: spoken(request, f"to {request.request_id[-1]}"))
    outputs = ask(engine, n=3, prompt_logprobs=0)
    assert [completion.text for completion in outputs[-1].outputs] == ["to 0", "to 1", "to 2"]
    assert [completion.index for completion in outputs[-1].outputs] == [0, 1, 2]
    assert [output.finished for output in outputs] == [False, False, True]
    assert [request.sampling.num_prompt_logprobs for request in engine.requests] == [0, -1, -1]


def test_times_are_of_arrival_first_token_and_end() -> None:
    metrics = ask(says("a", "b"))[-1].metrics
    assert metrics.first_token_time is not None
    assert metrics.finished_time is not None
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time


def test_without_a_tokenizer_ids_go_in_and_come_out() -> None:
    (output,) = ask(says("ab", reason="length"), [1, 2, 3], tokenizer=False, logprobs=0)
    assert (output.prompt, output.prompt_token_ids) == (None, [1, 2, 3])
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("", [97, 98])


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (RequestOutputKind.CUMULATIVE, ["a", "ab", "abc"]),
        (RequestOutputKind.DELTA, ["a", "b", "c"]),
        (RequestOutputKind.FINAL_ONLY, ["abc"]),
    ],
)
def test_a_stream_yields_what_its_kind_says(kind: RequestOutputKind, texts: list[str]) -> None:
    desk = desk_of(says("a", "b", "c"))
    (answer,) = desk.prepare(["?"], SamplingParams(output_kind=kind))
    arrivals: list[Arrival] = []
    desk.submit(answer, arrivals.append)
    outputs = [output for each in arrivals if (output := desk.accept(each).next_output()) is not None]
    assert [output.outputs[0].text for output in outputs] == texts


def test_events_that_came_together_are_one_step_of_each_answer() -> None:
    desk = desk_of(FakeEngine(echo))
    steps = [answer.output() for answer in collect(desk, desk.prepare(["abc", "de"], SamplingParams()))]
    assert [(output.outputs[0].text, output.finished) for output in steps] == [("abc", True), ("de", True)]


def test_only_so_many_requests_are_open_at_once() -> None:
    engine = FakeEngine(lambda request: [])
    desk = desk_of(engine)
    running = collect(desk, desk.prepare(["a", "b", "c"], SamplingParams()), max_open=2)
    engine.script = lambda request: spoken(request, "x") if len(engine.requests) > 1 else []
    assert next(running).index == 1
    assert next(running).index == 2
    engine.say(spoken(engine.requests[0], "late")[0])
    assert next(running).output().outputs[0].text == "late"


def test_whoever_stops_listening_aborts_what_runs() -> None:
    engine = FakeEngine(lambda request: spoken(request, "x", reason=None))
    desk = desk_of(engine)
    running = collect(desk, desk.prepare(["a", "b"], SamplingParams()))
    next(running)
    running.close()
    assert engine.aborted == [request.request_id for request in engine.requests]


def test_the_prompt_is_said_back() -> None:
    output = ask(FakeEngine(echo), "hallo")[-1]
    assert (output.prompt, output.outputs[0].text) == ("hallo", "hallo")
