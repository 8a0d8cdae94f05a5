"""Engines of Ray actors on GPUs: one GPU, stages and ranks over NCCL, and four of them over two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock.actors.links import open_store
from penstock.actors.llm import LLM

from ..actors.reference import expected_tokens
from ..model.tiny import write_tiny_model
from .prompts import LENGTH, NUM_DIFFERENT, PROMPTS, SETTINGS, greedy

pytestmark = pytest.mark.usefixtures("cluster")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"pipeline_parallel_size": 2}, marks=two_gpus),
        pytest.param({"tensor_parallel_size": 2}, marks=two_gpus),
    ],
    ids=str,
)
def test_an_engine_answers_as_transformers_does(tmp_path: Path, settings: dict[str, int]) -> None:
    model = write_tiny_model(tmp_path, "qwen3")
    expected = expected_tokens(model, PROMPTS[:NUM_DIFFERENT], LENGTH) * 4
    with LLM(str(tmp_path), skip_tokenizer_init=True, gpu_memory_utilization=0.3, **SETTINGS, **settings) as llm:
        outputs = llm.generate(PROMPTS, greedy(LENGTH))
        stages = llm.stats()["stages"]
        assert llm.limits.cache_tokens > 100_000, "the cache takes what the memory allows"
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert all(stage["busy_share"] > 0 for stage in stages)


@two_gpus
def test_tokens_that_nobody_asks_for_hold_nothing_up(tmp_path: Path) -> None:
    expected = expected_tokens(write_tiny_model(tmp_path, "qwen3"), PROMPTS[:NUM_DIFFERENT], LENGTH)
    with LLM(
        str(tmp_path),
        skip_tokenizer_init=True,
        num_kv_blocks=64,
        pipeline_parallel_size=2,
        step_timeout_s=15,
        **SETTINGS,
    ) as llm:
        for _ in range(60):  # more messages than a link holds, and than there are buffers to send them from
            assert [list(each.outputs[0].token_ids) for each in llm.generate(PROMPTS[:1], greedy(1))] == [
                expected[0][:1]
            ]
        assert [list(each.outputs[0].token_ids) for each in llm.generate(PROMPTS[:4], greedy(LENGTH))] == expected


@two_gpus
@pytest.mark.parametrize(("stages", "ranks", "gpus"), [(4, 1, "0,1,0,1"), (2, 2, "0,1,1,0")])
def test_four_ranks_on_two_gpus_answer_as_transformers_does(tmp_path: Path, stages: int, ranks: int, gpus: str) -> None:
    expected = expected_tokens(write_tiny_model(tmp_path, "qwen3"), PROMPTS[:NUM_DIFFERENT], LENGTH)
    sizes = {"pipeline_parallel_size": stages, "tensor_parallel_size": ranks}
    engines = [sizes, sizes | {"async_scheduling": False, "enforce_eager": True}]
    command = [sys.executable, "-m", "penstock.tests.gpu.shared_gpus", str(tmp_path), gpus, *map(json.dumps, engines)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=70, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[[")]
    assert len(ran) == len(engines), done.stdout
    for plain, answers, num_preemptions in ran:
        print(f"{len(answers)} answers, {num_preemptions} preemptions")
        assert plain == expected * 4
        assert num_preemptions > 0
        for which, count, tokens in answers:
            assert tokens == expected[which][:count], "a stale token"


@two_gpus
def test_a_small_send_completes_without_its_receiver(tmp_path: Path) -> None:
    store = open_store("127.0.0.1")
    command = [sys.executable, str(Path(__file__).parent / "nccl_end.py"), str(store.port), str(tmp_path / "sent")]
    ends = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [end.communicate(timeout=100)[1] for end in ends]
    assert [end.returncode for end in ends] == [0, 0], "\n".join(errors)
