"""The workloads are the ones that the anchors were measured with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.actors import llm as llm_module
from penstock.actors.commands.bench import arriving, run, warming
from penstock.actors.commands.workloads import Request, make_workload
from penstock.actors.llm import LLM
from penstock.cli import main
from penstock.errors import ConfigError

from .fake_engine import started

VOCAB_SIZE = 151936


def test_chat_is_the_same_mix_on_every_run() -> None:
    requests = make_workload("chat", 512, VOCAB_SIZE)
    assert sum(len(each.prompt_token_ids) for each in requests) == 156948
    assert sum(each.max_tokens for each in requests) == 123248
    assert all(1000 <= token < VOCAB_SIZE - 1000 for each in requests for token in each.prompt_token_ids)


def test_requests_come_at_once_or_at_a_rate() -> None:
    assert {each.arrival_s for each in make_workload("decode", 8, VOCAB_SIZE)} == {0.0}
    arrivals = [each.arrival_s for each in make_workload("prefill", 400, VOCAB_SIZE, rate=40.0)]
    assert arrivals == sorted(arrivals)
    assert 8 < arrivals[-1] < 12


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 2000 tokens, not 211"):
        make_workload("chat", 1, 211)


def test_what_warms_leaves_nothing_in_the_cache_for_what_is_measured() -> None:
    requests = make_workload("prefill", 16, VOCAB_SIZE)
    warm = warming(requests)
    assert [len(each.prompt_token_ids) for each in warm] == [len(each.prompt_token_ids) for each in requests]
    begun = {tuple(each.prompt_token_ids[:16]) for each in requests}
    assert begun.isdisjoint(tuple(each.prompt_token_ids[:16]) for each in warm)


def test_a_request_that_is_refused_at_its_time_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = started(monkeypatch)
    monkeypatch.setattr(llm_module, "find_engine", lambda name, address: engine)
    with LLM("demo") as llm:
        outputs = arriving(llm, [Request(0.01 * (length % 3), [70] * length, 9) for length in (4, 600, 5)])
    assert [output.num_generated_tokens for output in outputs] == [5, 0, 6]
    assert [output.error is None for output in outputs] == [True, False, True]
    assert "1 of 3 requests failed: has 600 tokens" in capsys.readouterr().err


def test_bench_says_how_it_is_used() -> None:
    assert run([]) == 0
    assert run(["faster"]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["throughput"], 2, "the following arguments are required: MODEL"),
        (["throughput", "demo"], 1, "the workloads need a vocabulary of more than 2000 tokens, not 264"),
        (["throughput", "nowhere"], 1, "no such model: 'nowhere'"),
        (["throughput", "demo", "--num-requests", "0"], 2, "argument --num-requests: '0' is no integer from 1 on"),
        (["throughput", "demo", "--at-once", "-1"], 2, "argument --at-once: '-1' is no integer from 1 on"),
        (["serve-sim", "demo", "--request-rate", "-5"], 2, "argument --request-rate: '-5' is no number above 0"),
        (["serve-sim", "demo", "--request-rate", "nan"], 2, "argument --request-rate: 'nan' is no number above 0"),
        (["serve-sim", "demo", "--request-rate", "x"], 2, "argument --request-rate: 'x' is no number above 0"),
    ],
)
def test_bench_refuses_in_one_line_before_anything_starts(
    arguments: list[str],
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = started(monkeypatch)
    assert main(["bench", *arguments]) == status
    said = capsys.readouterr()
    assert message in said.err
    assert len((said.out + said.err).strip().splitlines()) == 1
    assert engine.num_shutdowns == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [["throughput", "--at-once", "3"], ["serve-sim", "--request-rate", "50"]])
def test_bench_runs_every_request_and_says_where_time_went(
    kind: list[str], tiny_folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((Path(tiny_folder) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 4096, "max_position_embeddings": 4096}))
    engine = ["--load-format", "dummy", "--skip-tokenizer-init", "--num-cpus", "2", "--pipeline-parallel-size", "2"]
    assert run([kind[0], str(tmp_path), *kind[1:], "--num-requests", "6", *engine]) == 0
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    requests = make_workload("chat", 6, 4096, 50.0 if kind[0] == "serve-sim" else None)
    assert figures["output_tokens"] == sum(each.max_tokens for each in requests)
    assert [0 < stage["busy"] <= 1 for stage in figures["stages"]] == [True, True]
