"""Grammars in the pipeline: tokens are equal at any number of stages and after preemptions; other rows see nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from penstock.scheduler.messages import NewRequest

from .fake_engine import END
from .random_schemas import random_schema
from .structured_run import Ran, asked, grammar, run

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
}
DIGITS = grammar(regex="[0-9]{40}")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def mixture() -> list[NewRequest]:
    """Greedy and seeded ones, with and without a grammar, of many lengths."""
    bound = [
        asked(f"g{i}", 90, temperature=(0.0, 0.9)[i % 2], grammar=grammar(json=random_schema(7000 + i)))
        for i in range(8)
    ]
    long = [asked(f"d{i}", 60, temperature=0.8 * i, grammar=DIGITS, presence_penalty=0.3 * i) for i in range(3)]
    plain = [asked(f"p{i}", 40, temperature=0.7 * (i % 2), prompt=f"{i} + 7 = ", ignore_eos=True) for i in range(5)]
    return [*bound, *long, *plain]


@pytest.fixture(scope="module")
def expected() -> Ran:
    return run(mixture())


@pytest.mark.parametrize(
    ("stages", "ranks", "num_blocks", "async_scheduling"),
    [(2, 1, 2048, True), (4, 1, 2048, True), (1, 1, 24, True), (2, 1, 24, True), (4, 1, 24, True), (2, 2, 24, False)],
)
def test_tokens_are_equal_at_any_number_of_stages_and_after_preemptions(
    expected: Ran, stages: int, ranks: int, num_blocks: int, async_scheduling: bool
) -> None:
    ran = run(mixture(), stages, ranks, num_blocks, async_scheduling=async_scheduling)
    assert ran.tokens == expected.tokens
    assert (ran.num_preemptions > 0) == (num_blocks < 100)


def test_rows_beside_grammars_are_as_they_are_alone(expected: Ran) -> None:
    alone = run([request for request in mixture() if not request.sampling.grammar], stages=2)
    assert alone.tokens == {name: tokens for name, tokens in expected.tokens.items() if name.startswith("p")}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_kind_of_grammar_holds_the_text(temperature: float) -> None:
    specs = {
        "regex": grammar(regex=r"[a-f]{3}-\d{2}"),
        "choice": grammar(choice=['a "quoted" \\ one', "naïve\n", "☃"]),
        "ebnf": grammar(grammar='root ::= "<" word ">"\nword ::= [a-z] [a-z] | "é"'),
        "person": grammar(json=PERSON),
    }
    ran = run([asked(name, temperature=temperature, grammar=spec) for name, spec in specs.items()], stages=2)
    assert {end.finish_reason for end in ran.ends.values()} == {"stop"}
    assert re.fullmatch(r"[a-f]{3}-\d{2}", ran.text("regex"))
    assert ran.text("choice") in ('a "quoted" \\ one', "naïve\n", "☃")
    assert re.fullmatch("<([a-z]{2}|é)>", ran.text("ebnf"))
    assert json.loads(ran.text("person")).keys() == {"name", "age"}


def test_any_json_object_is_an_object() -> None:
    closing = ((ord('"'), 16.0), (ord("}"), 16.0))
    bound: dict[str, Any] = {"temperature": 1.0, "grammar": grammar(json_object=True), "logit_bias": closing}
    ran = run([asked(f"o{i}", 200, seed=i, **bound) for i in range(8)])
    assert all(isinstance(json.loads(ran.text(name)), dict) for name in ran.ends)
    assert {end.finish_reason for end in ran.ends.values()} == {"stop"}


def test_an_abort_in_the_middle_leaves_the_others_as_they_are(expected: Ran) -> None:
    ran = run(mixture(), stages=2, aborts={20: "d1", 30: "g3"})
    assert ran.ends["d1"].finish_reason == "abort"
    for name, tokens in expected.tokens.items():
        whole = ran.tokens.get(name, [])
        assert whole == tokens[: len(whole)]
        assert name in ("d1", "g3") or len(whole) == len(tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammars_end_goes_before_min_tokens_and_ignore_eos(temperature: float) -> None:
    done: dict[str, Any] = {"grammar": grammar(choice=["yes", "no"]), "temperature": temperature}
    ran = run(
        [
            asked("min", 30, min_tokens=9, **done),
            asked("on", 12, ignore_eos=True, **done),
            asked("long", 30, min_tokens=9, grammar=grammar(regex="a*"), temperature=temperature),
        ],
        stages=2,
    )
    assert ran.text("min") in ("yes", "no")
    assert set(ran.tokens["min"][3:]) == {END}
    assert (len(ran.tokens["min"]), ran.ends["min"].finish_reason) == (9, "stop")
    assert ran.text("on") in ("yes", "no")
    assert (len(ran.tokens["on"]), ran.ends["on"].finish_reason) == (12, "length")
    assert ran.tokens["long"][:8] == [ord("a")] * 8, "eos came while another token was allowed"


def test_stop_tokens_and_the_limit_end_as_ever() -> None:
    ran = run([asked("stopped", grammar=DIGITS, stop_token_ids=[*b"0123456789"]), asked("cut", 5, grammar=DIGITS)])
    assert (len(ran.tokens["stopped"]), ran.ends["stopped"].finish_reason) == (1, "stop")
    assert ran.ends["stopped"].stop_reason == ran.tokens["stopped"][0]
    assert (len(ran.tokens["cut"]), ran.ends["cut"].finish_reason) == (5, "length")


def test_logprobs_are_those_of_the_raw_logits_and_a_bias_counts_within_the_grammar() -> None:
    bias = ((ord("7"), 100.0), (ord("z"), 100.0))
    ran = run(
        [
            asked("bound", 6, prompt="12 + 30 =", grammar=DIGITS, num_logprobs=2),
            asked("free", 6, prompt="12 + 30 =", num_logprobs=2),
            asked("biased", 6, grammar=DIGITS, logit_bias=bias),
        ]
    )
    bound, free = (ran.events[name][0].logprobs[0] for name in ("bound", "free"))
    assert bound.top_ids.tolist() == free.top_ids.tolist()
    assert bound.top_values.tolist() == free.top_values.tolist()
    assert bound.token_ids.tolist() != free.token_ids.tolist(), "the grammar changes nothing here"
    assert bound.ranks[0] > 1
    assert ran.text("biased") == "777777"
