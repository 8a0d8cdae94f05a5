"""The endpoints around the answers: models, tokens, health, figures, and what is said of a wrong way in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

import penstock
from penstock.actors.server import Server
from penstock.configs.load import load_configs
from penstock.configs.problems import unknown_name
from penstock.configs.serving import ServeConfig
from penstock.errors import ConfigError, EngineDeadError, ModelError

from ..fake_engine import END
from .served import CHAT, COMPLETIONS, HELLO, Served


@pytest.fixture
def served() -> Served:
    return Served()


def test_the_model_is_listed(served: Served) -> None:
    listed = served.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert (card["id"], card["object"], card["owned_by"], card["max_model_len"]) == ("demo", "model", "penstock", 512)
    assert served.get("/v1/models/demo").json() == card
    assert served.get("/v1/models/").json() == listed
    for name in ("a/b", "%0A", "demo%0A"):
        missing = served.get(f"/v1/models/{name}")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


def test_text_becomes_tokens_and_text_again(served: Served) -> None:
    answer = served.ask("/tokenize", prompt="grüß", return_token_strs=True)
    assert answer["tokens"] == list("grüß".encode())
    assert (answer["count"], answer["max_model_len"]) == (6, 512)
    assert answer["token_strs"][:2] == ["g", "r"]
    assert served.ask("/tokenize", prompt="a")["token_strs"] is None
    assert served.ask("/detokenize", tokens=answer["tokens"])["prompt"] == "grüß"
    assert served.ask("/detokenize", tokens=[97, END])["prompt"] == "a<|end|>"


def test_a_conversations_tokens_are_those_that_chat_would_send(served: Served) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    counted = served.ask("/tokenize", messages=HELLO, tools=[tool])
    served.ask(CHAT, messages=HELLO, tools=[tool])
    assert counted["tokens"] == served.engine.requests[0].prompt_token_ids.tolist()
    begun = served.ask("/tokenize", messages=HELLO, add_generation_prompt=False)
    assert begun["count"] == counted["count"] - 1


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "given are: none"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "given are: prompt, messages"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"text": "a"}, "unknown field 'text'"),
        ("/detokenize", {"tokens": [264]}, "tokens holds 264; ids go from 0 to 263"),
        ("/detokenize", {"tokens": [-1]}, "tokens holds -1"),
        ("/detokenize", {"tokens": [10**30]}, "tokens holds 1000"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0 is 'a'"),
        ("/detokenize", {}, "tokens is missing"),
    ],
)
def test_what_is_no_text_and_no_token_is_refused(served: Served, path: str, body: dict[str, Any], words: str) -> None:
    assert words in served.refusal(path, **body)["message"]


def test_without_a_tokenizer_there_are_no_texts() -> None:
    served = Served(has_tokenizer=False)
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        assert "no tokenizer" in served.refusal(path, **body)["message"]


def test_embeddings_are_refused_clearly(served: Served) -> None:
    error = served.refusal("/v1/embeddings", 404, input="a", model="demo")
    assert "embeddings can't be had here" in error["message"]
    assert error["code"] == "not_supported"


def test_health_is_the_engines(served: Served) -> None:
    assert served.get("/health").status_code == 200
    served.health_problem = EngineDeadError("stage 1 hangs")
    sick = served.get("/health")
    assert sick.status_code == 503
    assert sick.json()["error"]["message"] == "stage 1 hangs"


def test_the_version_is_the_packages(served: Served) -> None:
    assert served.get("/version").json() == {"version": penstock.__version__}


def test_the_figures_count_what_was_served_and_what_was_refused(served: Served) -> None:
    served.ask(COMPLETIONS, prompt=["a", "b"])
    served.refusal(COMPLETIONS, prompt="")
    figures = served.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in figures.text.splitlines() if line.startswith("penstock_requests")]
    assert [line.rpartition(" ")[2] for line in lines if "admitted_total" in line] == ["2.0"]
    assert [line.rpartition(" ")[2] for line in lines if 'finish_reason="stop"' in line] == ["2.0"]
    assert [line.rpartition(" ")[2] for line in lines if 'status="400"' in line] == ["1.0"]


def test_other_paths_and_methods_are_refused_in_openais_shape(served: Served) -> None:
    missing = served.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "invalid_request_error"
    wrong = served.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "GET /v1/chat/completions" in wrong.json()["error"]["message"]


def asked_from(origin: str, *allowed: str) -> tuple[httpx.Response, httpx.Response]:
    """A browser's question before a chat, and the chat."""
    served = Served(config=ServeConfig(served_model_name="demo", allowed_origins=list(allowed)))
    wants = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}

    async def asked() -> tuple[httpx.Response, httpx.Response]:
        async with served.client() as client:
            before = await client.options(CHAT, headers={"origin": origin} | wants)
            body = {"model": "demo", "messages": HELLO, "stream": True}
            return before, await client.post(CHAT, headers={"origin": origin}, json=body)

    return asyncio.run(asked())


@pytest.mark.parametrize("allowed", ["https://chat.example.com", "*"])
def test_a_page_of_an_allowed_origin_may_ask(allowed: str) -> None:
    before, chat = asked_from("https://chat.example.com", "http://localhost:3000", allowed)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] in ("https://chat.example.com", "*")
    assert before.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in before.headers["access-control-allow-methods"]
    assert chat.headers["access-control-allow-origin"] in ("https://chat.example.com", "*")
    assert chat.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("allowed", [(), ("https://chat.example.com",)])
def test_a_page_of_another_origin_may_not(allowed: tuple[str, ...]) -> None:
    before, chat = asked_from("https://evil.example.com", *allowed)
    assert before.status_code == (400 if allowed else 405)
    assert "access-control-allow-origin" not in before.headers
    assert "access-control-allow-origin" not in chat.headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a", "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
    ],
    ids=range(13),
)
def test_a_body_that_is_no_request_is_a_400(served: Served, body: bytes) -> None:
    async def post() -> Any:
        async with served.client() as client:
            return await client.post(COMPLETIONS, content=body)

    response = asyncio.run(post())
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert len(response.content) < 10_000


@pytest.mark.parametrize(
    "fields",
    [
        {f"field_{at}": 0 for at in range(50_000)},
        {"prompt": [{}] * 50_000},
        {"prompt": {"a": "b" * 1_000_000}},
        {"stop": [""] * 50_000},
    ],
    ids=["names", "items", "text", "stops"],
)
def test_what_is_wrong_many_times_over_is_said_briefly_and_soon(served: Served, fields: dict[str, Any]) -> None:
    error = asyncio.run(asyncio.wait_for(served.post(COMPLETIONS, **({"prompt": "a"} | fields)), 5)).json()["error"]
    assert len(error["message"]) < 3000


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"tool_call_parser": "hermess"}, "did you mean 'hermes'"),
        ({"reasoning_parser": "qwen33"}, "did you mean 'qwen3'"),
        ({"api_key_file": "/nowhere/keys"}, "can't be read"),
        ({"host": "256.0.0.1"}, "can't listen on host '256.0.0.1'"),
    ],
)
def test_a_server_that_could_not_serve_is_refused_before_anything_starts(setting: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Server(*load_configs("demo", **setting))


def test_a_server_without_its_tokenizer_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json in"):
        Server(*load_configs("demo", tokenizer=str(tmp_path)))


def test_a_long_name_is_compared_with_no_other() -> None:
    assert "did you mean 'stop'" in unknown_name("stopp", ["stop", "x" * 100])
    assert "did you mean" not in unknown_name("x" * 99, ["stop", "x" * 100])


def test_templates_get_plain_values_alone(served: Served) -> None:
    error = served.refusal(CHAT, messages=HELLO, chat_template_kwargs={"a": 1, "b": []})
    assert "holds a list by the name 'b'" in error["message"]


def test_a_template_value_may_have_any_name(served: Served) -> None:
    assert "template can't take" in served.refusal(CHAT, messages=HELLO, chat_template_kwargs={"self": 1})["message"]


def test_what_goes_into_every_plan_has_a_bound(served: Served) -> None:
    many = {str(token_id): 1.0 for token_id in range(1025)}
    assert "at most 1024 items" in served.refusal(COMPLETIONS, prompt="a", logit_bias=many)["message"]


def test_a_list_is_given_up_at_its_first_wrong_item(served: Served) -> None:
    error = served.refusal("/detokenize", tokens=["a"] * 100_000)
    assert error["message"].startswith("tokens.0 is 'a'")
    assert ";" not in error["message"]
