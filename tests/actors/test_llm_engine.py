"""The Python faces over a real engine: the demo model in two stages."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import time
from collections.abc import Iterator

import pytest

import penstock
from penstock.actors.async_engine import AsyncEngine
from penstock.actors.llm import LLM
from penstock.actors.prompts import Prompt, PromptError
from penstock.configs.sampling import SamplingParams
from penstock.errors import EngineDeadError
from penstock.model.demo.questions import sample

GREEDY = SamplingParams(temperature=0, max_tokens=128)


@pytest.fixture(scope="module")
def llm(ray_cluster: None) -> Iterator[LLM]:
    """One engine for all tests of this file."""
    with LLM("demo", pipeline_parallel_size=2, max_num_seqs=32, num_kv_blocks=256) as face:
        yield face


def test_held_out_questions_are_answered_right(llm: LLM) -> None:
    asked = sample(40, seed=3)
    outputs = llm.chat([[{"role": "user", "content": question.text}] for question in asked], GREEDY)
    right = [output.outputs[0].text == question.answer for output, question in zip(outputs, asked, strict=True)]
    assert sum(right) >= 38
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}


def test_a_streamed_answer_grows(llm: LLM) -> None:
    texts = [output.outputs[0].text for _, output in llm.stream("17 + 25 =", GREEDY)]
    assert texts[-1] == " 42"
    assert len(texts) > 1
    assert all(" 42".startswith(text) for text in texts)


def test_a_stop_string_ends_the_request_in_the_engine_too(llm: LLM) -> None:
    (output,) = llm.chat(
        [{"role": "user", "content": "Count from 40 to 60."}], SamplingParams(temperature=0, max_tokens=200, stop="5 ")
    )
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("40 41 42 43 44 4", "5 ")
    deadline = time.monotonic() + 10
    while llm.stats()["scheduler"]["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.stats()["scheduler"]["running"] == 0


def test_structured_outputs_are_compiled_beside_the_pipeline_and_hold(llm: LLM) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3}
    bound = [
        SamplingParams(n=2, temperature=1.0, seed=1, max_tokens=64, structured_outputs={"json": schema}),
        SamplingParams(temperature=0, max_tokens=64, structured_outputs={"choice": ["Paris", "London"]}),
    ]
    colours, city, plain = llm.generate(["Colours: ", "City: ", "17 + 25 ="], [*bound, GREEDY])
    for completion in colours.outputs:
        assert set(json.loads(completion.text)) <= {"red", "green"}
    assert city.outputs[0].text in ("Paris", "London")
    assert plain.outputs[0].text == " 42"
    wrong = SamplingParams(structured_outputs={"grammar": "root ::= nobody"})
    with pytest.raises(PromptError, match="nobody"):
        llm.generate("x", wrong)
    assert llm.generate("17 + 25 =", GREEDY)[0].outputs[0].text == " 42"


def test_several_completions_with_a_seed_are_the_same_again(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.5, seed=5, max_tokens=12, ignore_eos=True)
    first, again = (llm.generate("Say ", params)[0].outputs for _ in range(2))
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    assert len({tuple(each.token_ids) for each in first}) == 3


def test_logprobs_come_for_every_token_of_answer_and_prompt(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    (output,) = llm.generate("17 + 25 =", params)
    completion = output.outputs[0]
    assert completion.logprobs is not None
    assert output.prompt_logprobs is not None
    assert [table[token].rank for table, token in zip(completion.logprobs, completion.token_ids, strict=True)] == [
        1
    ] * 4
    assert [len(table or ()) for table in output.prompt_logprobs[:1]] == [0]
    for table, token in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True):
        assert table is not None
        assert token in table


def test_bad_requests_leave_the_others_alone(llm: LLM) -> None:
    with pytest.raises(PromptError, match=r"prompt 0: has 600 tokens; the maximum context length is \d+ tokens"):
        llm.generate([7, *[1] * 599], GREEDY)
    prompts: list[Prompt] = ["", "17 + 25 =", [264]]
    outputs = dict(llm.complete(((prompt, GREEDY) for prompt in prompts), max_open=4))
    assert [outputs[at].error is None for at in range(3)] == [False, True, False]
    assert outputs[1].outputs[0].text == " 42"


def test_many_asynchronous_streams_run_at_once_and_one_is_aborted(llm: LLM) -> None:
    async def ask(engine: AsyncEngine, number: int) -> str:
        text = ""
        async for output in engine.generate(f"{number} + 1 =", GREEDY):
            text = output.outputs[0].text
        return text

    async def all_of_them() -> list[str]:
        engine = penstock.connect(llm.name)
        endless = engine.generate("a", SamplingParams(max_tokens=400, ignore_eos=True), request_id="endless")
        await anext(endless)
        texts = await asyncio.gather(*(ask(engine, number) for number in range(10, 30)))
        engine.abort("endless")
        last = [output async for output in endless][-1]
        engine.close()
        return [*texts, str(last.outputs[0].finish_reason)]

    assert asyncio.run(all_of_them()) == [*(f" {number + 1}" for number in range(10, 30)), "abort"]


def test_a_forked_process_is_told_so_and_ends_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        for ask in (llm.stats, lambda: llm.generate("a")):
            with pytest.raises(EngineDeadError, match="this process was forked"):
                ask()
        llm.shutdown()
    assert llm.generate("17 + 25 =", GREEDY)[0].outputs[0].text == " 42"


def test_a_handle_that_is_sent_away_says_what_to_send(llm: LLM) -> None:
    with pytest.raises(TypeError, match=f"pass the name '{llm.name}' on"):
        copy.deepcopy(llm)  # by the way that pickling takes


def test_a_shut_down_engine_says_so() -> None:
    face = LLM("demo", num_kv_blocks=64)
    face.shutdown()
    face.shutdown()
    with pytest.raises(EngineDeadError):
        face.generate("a")
