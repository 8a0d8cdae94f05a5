"""`generate --input --output` over an engine whose tokens are known: a line each, restartable, no line ends others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.scheduler.messages import NewRequest, TokenEvent

from .fake_engine import FakeEngine, spoken, started


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """What a command starts."""
    return started(monkeypatch)


class Files:
    """A folder with a file of prompts and a file for answers."""

    def __init__(self, folder: Path) -> None:
        self.input = folder / "prompts.jsonl"
        self.output = folder / "answers.jsonl"

    def ask(self, *lines: object) -> None:
        self.input.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def run(self, *flags: str) -> int:
        return main(["generate", "--input", str(self.input), "--output", str(self.output), *flags])

    def answers(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def texts(self) -> list[object]:
        return [answer["outputs"][0]["text"] for answer in self.answers()]  # type: ignore[index]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_file_is_answered_in_order_whatever_finishes_first(engine: FakeEngine, files: Files) -> None:
    def last_first(request: NewRequest) -> list[TokenEvent]:
        if len(engine.requests) < 3:
            return []
        return [event for each in reversed(engine.requests) for event in echo_late(each)]

    def echo_late(request: NewRequest) -> list[TokenEvent]:
        return spoken(request, f"to {chr(request.prompt_token_ids[0])}")

    engine.script = last_first
    files.ask({"prompt": "a", "id": "first"}, {"prompt_token_ids": [98]}, {"prompt": "c"})
    assert files.run() == 0
    assert files.texts() == ["to a", "to b", "to c"]
    assert files.answers()[0]["id"] == "first"
    assert [answer["index"] for answer in files.answers()] == [0, 1, 2]


def test_a_second_run_goes_on_where_the_first_was_cut_off(engine: FakeEngine, files: Files) -> None:
    files.ask(*({"prompt": text} for text in "abcd"))
    files.run()
    whole = files.output.read_bytes()
    lines = whole.splitlines(keepends=True)
    files.output.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    engine.requests.clear()
    assert files.run() == 0
    assert files.output.read_bytes() == whole
    assert [bytes(request.prompt_token_ids.tolist()) for request in engine.requests] == [b"c", b"d"]


def test_prompts_may_come_out_of_a_pipe_and_a_second_run_goes_on(engine: FakeEngine, files: Files) -> None:
    for _ in range(2):
        reader, writer = os.pipe()
        os.write(writer, b'{"prompt": "a"}\n{"prompt": "b"}\n')
        os.close(writer)
        files.input = Path(f"/dev/fd/{reader}")
        assert files.run() == 0
        os.close(reader)
        assert files.texts() == ["a", "b"]
        files.output.write_bytes(files.output.read_bytes().splitlines(keepends=True)[0])
    assert len(engine.requests) == 3


def test_a_file_that_is_not_there_is_named(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run() == 1
    assert f"--input {files.input} can't be read" in capsys.readouterr().err


@pytest.mark.parametrize("num_left", [1, 9, 25, 60])
def test_an_only_line_that_was_cut_off_anywhere_is_written_anew(
    engine: FakeEngine, files: Files, num_left: int
) -> None:
    files.ask({"prompt": "a", "id": "first"})
    files.run()
    whole = files.output.read_bytes()
    files.output.write_bytes(whole[:num_left])
    assert files.run() == 0
    assert files.output.read_bytes() == whole


def test_what_follows_the_last_answer_is_left_alone(engine: FakeEngine, files: Files) -> None:
    files.ask({"prompt": "a"})
    files.run()
    more = files.output.read_bytes() + b'{"index": 1, "prompt": '
    files.output.write_bytes(more)
    assert files.run() == 1
    assert files.output.read_bytes() == more


def test_a_finished_file_starts_no_engine(engine: FakeEngine, files: Files) -> None:
    files.ask({"prompt": "a"})
    files.run()
    assert files.run() == 0
    assert engine.num_shutdowns == 1


@pytest.mark.parametrize("flags", [["--max-tokens", "3"], ["--chat"], ["--temperature", "1"]])
def test_answers_to_other_settings_are_not_taken_for_these(
    engine: FakeEngine, files: Files, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files.ask({"prompt": "a"})
    files.run()
    before = files.output.read_bytes()
    assert files.run(*flags) == 1
    assert "line 1 answers another prompt, or the same with other settings" in capsys.readouterr().err
    assert files.output.read_bytes() == before


@pytest.mark.parametrize(
    "strange", [b"{}\n", b"notes\n", b'{"index": 0, "digest": "0"}\n', b'{"my": "only copy"}', b'{"index": 1, "prompt"']
)
def test_a_file_that_holds_something_else_is_left_alone(files: Files, engine: FakeEngine, strange: bytes) -> None:
    files.ask({"prompt": "a"})
    files.output.write_bytes(strange)
    assert files.run() == 1
    assert files.output.read_bytes() == strange


def test_a_prompt_that_cannot_be_served_is_answered_in_its_place(engine: FakeEngine, files: Files) -> None:
    files.ask({"prompt": ""}, {"prompt": "b"}, {"prompt": 7}, {"messages": [{"role": "user", "content": 3}]})
    assert files.run() == 0
    errors = [str(answer["error"]) for answer in files.answers()]
    assert errors[0] == "is empty; it needs at least 1 token"
    assert errors[1] == "None"
    assert errors[2].startswith("is a int")
    assert "chat template can't take these messages" in errors[3]
    assert files.texts()[1] == "b"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"messages": []}, "empty conversation"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "holds half a character, '\\ud83d'"),
        ({"prompt": "cut \ud83d"}, "holds half a character, '\\ud83d'"),
        ({"prompt_token_ids": [-1]}, "holds the token id -1"),
        ({"prompt_token_ids": [1 << 40]}, f"holds the token id {1 << 40}"),
        ({"prompt_token_ids": [10**23]}, f"holds the token id {10**23}"),
    ],
)
def test_a_bad_line_ends_no_others(engine: FakeEngine, files: Files, line: dict[str, object], error: str) -> None:
    files.ask({"prompt": "a"}, line, {"prompt": "b"})
    assert files.run() == 0
    assert files.texts() == ["a", "", "b"]
    assert error in str(files.answers()[1]["error"])


def test_an_id_of_half_a_character_comes_back_as_it_was(engine: FakeEngine, files: Files) -> None:
    files.ask({"prompt": "a", "id": "\ud83d"})
    assert files.run() == 0
    assert (files.answers()[0]["id"], files.texts()) == ("\ud83d", ["a"])


def test_a_line_may_bring_messages_and_its_own_params(engine: FakeEngine, files: Files) -> None:
    chat = [{"role": "user", "content": "hi"}]
    files.ask({"messages": chat, "sampling_params": {"max_tokens": 5, "n": 2}})
    assert files.run() == 0
    assert [request.max_tokens for request in engine.requests] == [5, 5]
    assert len(files.answers()[0]["outputs"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[]", "line 1 has to be an object with one of prompt, prompt_token_ids, messages"),
        ('{"prompt": "a"}\n\n{"text": "b"}', "line 3 has to be an object"),
        ('{"messages": "hi"}', "line 1: messages are no list of objects"),
        ('{"prompt": "a", "sampling_params": {"temprature": 1}}', "line 1: unknown sampling parameter 'temprature'"),
        ('{"prompt": "a", "sampling_params": {"temprature": 1}}', "did you mean 'temperature'?"),
        ('{"prompt": "a", "sampling_params": {"self": 1}}', "line 1: unknown sampling parameter 'self'"),
        ('{"prompt": "a", "sampling_params": [1]}', "line 1: sampling_params are a list; they are an object"),
        ('{"prompt": "a", "id": ' + "9" * 5000 + "}", "line 1 is no JSON: Exceeds the limit"),
        ("[" * 100_000, "line 1 is nested more than 100 deep"),
        ('{"prompt": ' + "[" * 100 + "]" * 100 + "}", "line 1 is nested more than 100 deep"),
    ],
)
def test_a_line_that_is_no_prompt_is_named_before_anything_starts(
    files: Files, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files.input.write_text(text)
    assert files.run() == 1
    assert message in capsys.readouterr().err
    assert not files.output.exists()


def test_two_runs_do_not_write_one_file(engine: FakeEngine, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    def run_again(request: NewRequest) -> list[TokenEvent]:
        assert files.run() == 1
        return spoken(request, "x")

    engine.script = run_again
    files.ask({"prompt": "a"})
    assert files.run() == 0
    assert "can't be written" in capsys.readouterr().err


def test_a_dead_engine_leaves_what_was_answered(
    engine: FakeEngine, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    def die_at_the_second(request: NewRequest) -> list[TokenEvent]:
        if len(engine.requests) == 1:
            return spoken(request, "x")
        engine.is_dead = True
        return [TokenEvent("", request.request_id, 0, finish_reason="error", error="stage 1 has died")]

    engine.script = die_at_the_second
    files.ask({"prompt": "a"}, {"prompt": "b"})
    assert files.run() == 1
    assert files.texts() == ["x"]
    assert "stage 1 has died" in capsys.readouterr().err
