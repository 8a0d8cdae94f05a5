"""The command line over an engine whose tokens are known: its flags, what it writes, what it says of failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.actors.commands import generate
from penstock.actors.commands.flags import Parser, add_sampling, add_settings, engine_config, sampling_params
from penstock.actors.commands.live import Growing, Redrawn
from penstock.cli import main
from penstock.configs.engine import EngineConfig
from penstock.errors import EngineDeadError
from penstock.model.demo.questions import sample
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import StepResult, ints
from penstock.scheduler.record import Recorder
from penstock.scheduler.scheduler import Scheduler

from .fake_engine import FakeEngine, spoken, started


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """What a command starts."""
    return started(monkeypatch)


def parsed(*arguments: str) -> tuple[EngineConfig, object]:
    parser = Parser(prog="penstock generate")
    add_settings(parser)
    add_sampling(parser)
    names = parser.parse(arguments)
    return engine_config(names), sampling_params(names)


def test_flags_are_the_settings() -> None:
    config, params = parsed(
        *("demo", "--pipeline-parallel-size", "2", "--pipeline-layer-partition", "5,3", "--no-async-scheduling"),
        *("--temperature", "0.5", "--stop", "a", "--stop", "b", "--seed", "7", "--load-format=dummy"),
    )
    assert (config.pipeline_parallel_size, config.pipeline_layer_partition) == (2, [5, 3])
    assert (config.async_scheduling, config.load_format, config.seed) == (False, "dummy", 7)
    assert (params.temperature, params.stop, params.seed) == (0.5, ["a", "b"], 7)  # type: ignore[attr-defined]


def test_none_is_what_the_help_means_by_it_and_text_where_text_is_asked_for() -> None:
    config, params = parsed("demo", "--max-model-len", "None", "--pipeline-layer-partition", "None", "--stop", "None")
    assert (config.max_model_len, config.pipeline_layer_partition) == (None, None)
    assert params.stop == ["None"]  # type: ignore[attr-defined]
    _, params = parsed("demo", "--max-tokens", "None")
    assert params.max_tokens is None  # type: ignore[attr-defined]


def test_the_help_says_the_defaults_that_a_command_has(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert main(["generate", "--prompt", "a"]) == 0
    (request,) = engine.requests
    assert f"most likely token (default {request.sampling.temperature})" in told
    assert f"up to max_model_len (default {request.max_tokens})" in told


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["servant"], 2, "unknown command 'servant'; there are bench, generate, serve, replay"),
        (["generate", "--max-num-seq", "4"], 2, "unknown flag 'max-num-seq'; did you mean 'max-num-seqs'?"),
        (["generate", "--model", "demo"], 2, "MODEL comes without a flag: penstock generate MODEL"),
        (["serve", "--model=demo"], 2, "MODEL comes without a flag: penstock serve MODEL"),
        (["generate", "demo", "more"], 2, "unexpected argument 'more'"),
        (["generate", "--pipeline-layer-partition", "a"], 2, "'a' is no list of numbers"),
        (["generate", "--block-size", "0"], 1, "block_size is '0': input should be greater than or equal to 1"),
        (["generate", "--temperature", "-1"], 1, "temperature is '-1'"),
        (["generate", "nowhere"], 1, "no such model: 'nowhere'"),
        (["generate", "--input", "x"], 1, "--input and --output go together"),
        (["generate", "--input", "x", "--output", "y", "--prompt", "z"], 1, "don't go together"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(
    arguments: Sequence[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_help_and_version_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    assert "generate" in capsys.readouterr().out
    assert main(["generate", "--help"]) == 0
    assert "--pipeline-parallel-size" in capsys.readouterr().out


def test_prompts_are_answered_line_by_line_with_a_table_after_them(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--prompt", "ab", "--prompt", "c"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["ab  ab", "c   c"]
    assert "requests          2" in said.err
    assert "stage 1 busy      50%" in said.err
    assert engine.num_shutdowns == 1


def test_one_prompt_is_answered_with_its_text_alone(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "two\nlines", "--chat"]) == 0
    assert capsys.readouterr().out == "two\nlines\n"
    assert engine.requests[0].prompt_token_ids[0] == 259


def test_the_demo_asks_held_out_questions_and_counts_right_answers(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = sample(3, seed=0)
    engine.script = lambda request: spoken(request, "wrong" if len(engine.requests) == 2 else right(request))

    def right(request: NewRequest) -> str:
        return asked[len(engine.requests) - 1].answer

    assert main(["generate", "--num-questions", "0"]) == 2
    assert "argument --num-questions: '0' is no integer from 1 on" in capsys.readouterr().err
    assert main(["generate", "--num-questions", "3"]) == 0
    said = capsys.readouterr()
    assert f"wrong (right: {asked[1].answer})" in said.out
    assert "right answers     2 of 3" in said.err


def test_another_model_needs_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path)]) == 1
    assert "only the demo model brings its own questions" in capsys.readouterr().err


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (EngineDeadError("gone"), 1)])
def test_what_ends_a_command_ends_the_engine(
    engine: FakeEngine, raised: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(generate, "_show", interrupted)
    assert main(["generate", "--prompt", "a"]) == status
    assert engine.num_shutdowns == 1


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A run of one request over two plans, on file."""
    file = tmp_path / "run.record"
    with file.open("wb") as stream:
        recorder = Recorder(Scheduler(SchedulerConfig()), stream)
        recorder.add_request(NewRequest("a", ints([1, 2, 3]), max_tokens=2))
        for step in range(2):
            assert recorder.schedule() is not None
            recorder.update(StepResult(step, ints([7])))
    return file


def test_a_record_is_replayed(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(record)]) == 0
    assert capsys.readouterr().out.startswith("2 plans of ")


def test_a_plan_that_differs_fails_the_replay(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = record.read_bytes().replace(bytes(ints([1, 2, 3])), bytes(ints([1, 2, 4])), 1)
    record.write_bytes(changed)
    assert main(["replay", str(record)]) == 1
    assert "plan 0" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(None, "no such record"), (b"\x01", "is no record of a run")])
def test_what_is_no_record_is_named(
    tmp_path: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other"
    if content is not None:
        file.write_bytes(content)
    assert main(["replay", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path)]) == 1
    assert f"{tmp_path} can't be read: Is a directory" in capsys.readouterr().err


def test_a_block_of_lines_is_redrawn_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    view = Redrawn(["one", "three"])
    view.update(1, "grows", finished=True)
    view.close()
    out = capsys.readouterr().out
    assert out.startswith("\n\n\x1b[2A")
    assert out.endswith("\x1b[2Aone    \x1b[K\nthree  grows\x1b[K\n")


def test_a_growing_text_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = Growing()
    for text, finished in (("a", False), ("ab", False), ("ab   (right: c)", True)):
        view.update(0, text, finished)
    assert capsys.readouterr().out == "ab   (right: c)\n"
