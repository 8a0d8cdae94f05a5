"""Engines of Ray actors on GPUs: one GPU, and two stages over NCCL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock.actors.links import open_store
from penstock.actors.llm import LLM
from penstock.configs.sampling import SamplingParams

from ..actors.reference import expected_tokens
from ..model.tiny import write_tiny_model

PROMPTS = [[5, 9, 13, 200, 41] * 3, [7, 8], list(range(20, 60)), [100] * 9] * 4
LENGTH = 24
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
    expected = expected_tokens(model, PROMPTS[:4], LENGTH) * 4
    common = {"dtype": "float32", "device": "cuda", "block_size": 16, "max_model_len": 128, "max_num_seqs": 32}
    with LLM(str(tmp_path), skip_tokenizer_init=True, gpu_memory_utilization=0.06, **common, **settings) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
        outputs = llm.generate(PROMPTS, params)
        stages = llm.stats()["stages"]
        assert llm.limits.cache_tokens > 100_000, "the cache takes what the memory allows"
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert all(stage["busy_share"] > 0 for stage in stages)


@two_gpus
def test_tokens_that_nobody_asks_for_hold_nothing_up(tmp_path: Path) -> None:
    expected = expected_tokens(write_tiny_model(tmp_path, "qwen3"), PROMPTS[:4], LENGTH)
    common = {"dtype": "float32", "device": "cuda", "block_size": 16, "max_model_len": 128, "max_num_seqs": 32}
    with LLM(
        str(tmp_path), skip_tokenizer_init=True, num_kv_blocks=64, pipeline_parallel_size=2, step_timeout_s=15, **common
    ) as llm:
        one, more = (SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (1, LENGTH))
        for _ in range(60):  # more messages than a link holds, and than there are buffers to send them from
            assert [list(each.outputs[0].token_ids) for each in llm.generate(PROMPTS[:1], one)] == [expected[0][:1]]
        assert [list(each.outputs[0].token_ids) for each in llm.generate(PROMPTS[:4], more)] == expected


@two_gpus
def test_a_small_send_completes_without_its_receiver(tmp_path: Path) -> None:
    store = open_store("127.0.0.1")
    command = [sys.executable, str(Path(__file__).parent / "nccl_end.py"), str(store.port), str(tmp_path / "sent")]
    ends = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [end.communicate(timeout=100)[1] for end in ends]
    assert [end.returncode for end in ends] == [0, 0], "\n".join(errors)
