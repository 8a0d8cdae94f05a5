"""The faces of an engine, synchronous and asynchronous, over an engine whose tokens are known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.actors import llm as llm_module
from penstock.actors.async_engine import AsyncEngine
from penstock.actors.llm import LLM
from penstock.actors.outputs import RequestOutput
from penstock.actors.prompts import Prompt, PromptError
from penstock.configs.engine import EngineConfig
from penstock.configs.sampling import SamplingParams
from penstock.errors import ConfigError, EngineDeadError, ModelError, RequestError
from penstock.scheduler.messages import NewRequest, TokenEvent

from .fake_engine import DEMO, FakeEngine, desk_of, echo, spoken, started

ENOUGH = SamplingParams(max_tokens=64)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """What `LLM(...)` starts and `connect` finds."""
    fake = started(monkeypatch)
    monkeypatch.setattr(llm_module, "find_engine", lambda name, address: fake)
    return fake


@pytest.fixture
def llm(engine: FakeEngine) -> Iterator[LLM]:
    with LLM("demo") as face:
        yield face


def refused(request: NewRequest) -> list[TokenEvent]:
    return [TokenEvent("", request.request_id, 0, finish_reason="error", error="value 9 is above 8")]


def text_of(output: RequestOutput) -> str:
    return output.outputs[0].text


def test_answers_come_in_the_order_of_the_prompts(llm: LLM, engine: FakeEngine) -> None:
    prompts: list[Prompt] = ["a", [98], {"prompt": "c"}]
    assert [text_of(output) for output in llm.generate(prompts, ENOUGH)] == ["a", "b", "c"]
    assert text_of(llm.generate("one")[0]) == "one"
    assert llm.generate([]) == []


def test_settings_are_keywords_and_reach_the_engine(engine: FakeEngine) -> None:
    with LLM("demo", pipeline_parallel_size=2, max_num_seqs=3) as face:
        assert (engine.config.pipeline_parallel_size, engine.config.max_num_seqs) == (2, 3)
        assert face.name == "fake"


def test_wrong_settings_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module, "start_engine", lambda config: pytest.fail("was started"))
    with pytest.raises(ConfigError, match="'max_num_seq'; did you mean 'max_num_seqs'"):
        LLM("demo", max_num_seq=3)
    with pytest.raises(ModelError, match="nowhere"):
        LLM("nowhere")


def test_an_engine_whose_tokenizer_is_damaged_is_shut_down(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer in .* can't be read"):
        LLM("demo", tokenizer=str(tmp_path))
    assert engine.num_shutdowns == 1


def test_an_engine_without_its_tokenizer_is_not_even_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llm_module, "start_engine", lambda config: pytest.fail("was started"))
    with pytest.raises(ModelError, match=r"no tokenizer.json in .*skip_tokenizer_init"):
        LLM("demo", tokenizer=str(tmp_path))


def test_a_context_manager_shuts_down_also_after_an_error(engine: FakeEngine) -> None:
    with pytest.raises(RuntimeError, match="mine"), LLM("demo"):
        raise RuntimeError("mine")
    assert (engine.num_closed, engine.num_shutdowns) == (1, 1)


def test_each_prompt_may_have_its_own_params(llm: LLM, engine: FakeEngine) -> None:
    llm.generate(["a", "b"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)])
    assert [request.max_tokens for request in engine.requests] == [1, 2]
    with pytest.raises(RequestError, match="1 sampling params for 2 prompts"):
        llm.generate(["a", "b"], [ENOUGH])


@pytest.mark.parametrize(
    ("params", "kind"), [({"temperature": 0}, "dict"), ([{"temperature": 0}], "list of dict"), ("greedy", "str")]
)
def test_what_is_no_sampling_params_is_told(llm: LLM, params: Any, kind: str) -> None:
    with pytest.raises(RequestError, match=rf"sampling params are a SamplingParams, .*; not {kind}$"):
        llm.generate("a", params)


def test_no_limit_means_all_that_fits(llm: LLM, engine: FakeEngine) -> None:
    llm.generate("abcd", SamplingParams(max_tokens=None))
    assert engine.requests[0].max_tokens == engine.limits.cache_tokens - 4


def test_more_tokens_at_least_than_can_follow_a_prompt_are_refused(llm: LLM) -> None:
    with pytest.raises(PromptError, match="min_tokens is 497, but behind the prompt is room for 496 tokens only"):
        llm.generate("abcd", SamplingParams(max_tokens=None, min_tokens=497))


def test_a_prompt_that_cannot_be_served_is_named_before_anything_is_submitted(llm: LLM, engine: FakeEngine) -> None:
    with pytest.raises(PromptError, match="prompt 1: is empty") as caught:
        llm.generate(["fine", ""])
    assert (caught.value.index, engine.requests) == (1, [])


def test_what_the_engine_refuses_is_raised_when_the_others_are_done(llm: LLM, engine: FakeEngine) -> None:
    engine.script = lambda request: refused(request) if len(engine.requests) == 1 else echo(request)
    with pytest.raises(PromptError, match="prompt 0: value 9 is above 8") as caught:
        llm.generate(["a", "b"])
    assert [text_of(output) for output in caught.value.outputs] == ["", "b"]


def test_a_dead_engine_is_another_error_than_a_refused_request(llm: LLM, engine: FakeEngine) -> None:
    engine.script, engine.is_dead = refused, True
    with pytest.raises(EngineDeadError, match="value 9"):
        llm.generate("a")
    with pytest.raises(EngineDeadError):
        list(llm.stream("a"))
    with pytest.raises(EngineDeadError):
        list(llm.complete([("a", ENOUGH)], max_open=1))


def test_complete_answers_bad_prompts_and_goes_on(llm: LLM) -> None:
    prompts: list[Prompt | RequestError] = ["", "b", RequestError("no such thing"), [999]]
    outputs = dict(llm.complete(((prompt, ENOUGH) for prompt in prompts), max_open=2))
    assert [outputs[at].error for at in range(4)] == [
        "is empty; it needs at least 1 token",
        None,
        "no such thing",
        "holds the token id 999; ids go from 0 to 263",
    ]
    assert text_of(outputs[1]) == "b"


def test_a_stream_says_whose_answer_has_grown(llm: LLM) -> None:
    seen = [(index, text_of(output)) for index, output in llm.stream(["ab", "c"], ENOUGH)]
    assert seen == [(0, "ab"), (1, "c")]


def test_a_chat_goes_through_the_models_template(llm: LLM, engine: FakeEngine) -> None:
    (output,) = llm.chat([{"role": "user", "content": "hi"}], ENOUGH)
    assert output.prompt == "<|user|>hi<|end|><|assistant|>"
    assert engine.requests[0].prompt_token_ids.tolist() == [259, 104, 105, 257, 260]
    assert len(llm.chat([[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]], ENOUGH)) == 2


def test_messages_that_the_template_cannot_take_are_a_request_error(llm: LLM) -> None:
    with pytest.raises(RequestError, match="chat template can't take these messages"):
        llm.chat([{"role": "user", "content": 7}])


def test_what_is_neither_prompts_nor_messages_is_named(llm: LLM) -> None:
    for wrong in (None, 5):
        with pytest.raises(RequestError, match=f"prompts are .*; not {type(wrong).__name__}"):
            llm.generate(wrong)  # type: ignore[arg-type]
    for other in ({"role": "user", "content": "a"}, "a", None):
        with pytest.raises(RequestError, match=f"a chat is a list of messages.*; not {type(other).__name__}"):
            llm.chat(other)  # type: ignore[arg-type]


def test_without_a_tokenizer_there_is_no_chat_and_no_text(engine: FakeEngine) -> None:
    with LLM("demo", skip_tokenizer_init=True) as face:
        assert face.generate([[97]])[0].outputs[0].token_ids[0] == 97
        with pytest.raises(RequestError, match="a chat needs a tokenizer"):
            face.chat([{"role": "user", "content": "a"}])
        with pytest.raises(RequestError, match="no tokenizer"):
            face.get_tokenizer()


def test_without_a_tokenizer_a_stop_string_is_refused_with_its_prompts_place(engine: FakeEngine) -> None:
    stopping = SamplingParams(stop="c", max_tokens=8)
    with (
        LLM("demo", skip_tokenizer_init=True) as face,
        pytest.raises(PromptError, match="prompt 1: has stop strings, which need text"),
    ):
        face.generate([[97], [98]], [ENOUGH, stopping])
    assert engine.requests == []


def test_the_tokenizer_is_transformers_own(llm: LLM) -> None:
    assert llm.get_tokenizer().decode([104, 105]) == "hi"


def test_an_asynchronous_stream_grows_and_ends() -> None:
    async def texts() -> list[str]:
        engine = FakeEngine(lambda request: [])
        face = AsyncEngine(engine, desk_of(engine))  # type: ignore[arg-type]
        stream = face.generate("a", ENOUGH)
        seen = []
        pending = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        for event in spoken(engine.requests[0], "x", "y", "z"):
            engine.say(event)
            seen.append(text_of(await pending))
            pending = asyncio.ensure_future(anext(stream))
        with pytest.raises(StopAsyncIteration):
            await pending
        return seen

    assert asyncio.run(texts()) == ["x", "xy", "xyz"]


def test_events_that_came_together_are_one_step_of_an_asynchronous_stream() -> None:
    async def texts() -> list[str]:
        engine = FakeEngine()
        face = AsyncEngine(engine, desk_of(engine))  # type: ignore[arg-type]
        return [text_of(output) async for output in face.generate("hallo", ENOUGH)]

    assert asyncio.run(texts())[-1] == "hallo"


def test_leaving_an_asynchronous_stream_aborts_its_request() -> None:
    async def leave() -> FakeEngine:
        engine = FakeEngine(lambda request: spoken(request, "x", reason=None))
        stream = AsyncEngine(engine, desk_of(engine)).generate("a", ENOUGH)  # type: ignore[arg-type]
        await anext(stream)
        await stream.aclose()
        return engine

    engine = asyncio.run(leave())
    assert engine.aborted == [engine.requests[0].request_id]


def test_an_abort_ends_the_stream_with_its_reason() -> None:
    async def reasons() -> list[str | None]:
        engine = FakeEngine(lambda request: spoken(request, "x", reason=None))
        face = AsyncEngine(engine, desk_of(engine))  # type: ignore[arg-type]
        seen = []
        async for output in face.generate("a", ENOUGH, request_id="mine"):
            seen.append(output.outputs[0].finish_reason)
            face.abort("mine")
        return seen

    assert asyncio.run(reasons()) == [None, "abort"]


def test_an_asynchronous_request_that_cannot_be_served_raises() -> None:
    async def ask(script: object, prompt: str) -> None:
        engine = FakeEngine(script)  # type: ignore[arg-type]
        async for _ in AsyncEngine(engine, desk_of(engine)).generate(prompt, ENOUGH):  # type: ignore[arg-type]
            pass

    with pytest.raises(RequestError, match="is empty"):
        asyncio.run(ask(echo, ""))
    with pytest.raises(RequestError, match="value 9 is above 8"):
        asyncio.run(ask(refused, "a"))


def test_connect_finds_an_engine_by_name(engine: FakeEngine) -> None:
    engine.config = EngineConfig(model=DEMO)
    face = penstock.connect("fake")
    assert face.name == "fake"
    face.close()
    assert (engine.num_closed, engine.num_shutdowns) == (1, 0)
    assert text_of(LLM.connect("fake").generate("a")[0]) == "a"
