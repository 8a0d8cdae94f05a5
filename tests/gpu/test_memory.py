"""Steps take their memory from what warming up left: asking the driver for more would wait for the device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.actors.in_process import PipelineDriver
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import GREEDY, Sampling, ints

from .test_soak import start

pytestmark = pytest.mark.gpu
NUM_BLOCKS = 2048
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def times_asked() -> int:
    """How often the allocator has asked the driver for memory."""
    return int(torch.cuda.memory_stats()["num_device_alloc"])


def ask(driver: PipelineDriver, count: int, length: int, sampling: Sampling) -> None:
    prompts = np.random.default_rng(0).integers(3, 30000, (count, length)).tolist()
    for i, prompt in enumerate(prompts):
        driver.scheduler.add_request(NewRequest(str(i), ints(prompt), 4, sampling, ignore_eos=True))
    for _ in driver.run():
        pass


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_no_step_asks_the_driver_for_memory(tmp_path: Path, eager: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    driver = start(
        tmp_path,
        NUM_BLOCKS,
        "cuda",
        load_format="dummy",
        dtype="bfloat16",
        max_num_seqs=64,
        max_model_len=2048,
        max_num_batched_tokens=4096,
        enforce_eager=eager,
    )
    asked = times_asked()
    drawn = Sampling(temperature=0.8, top_p=0.9, seed=3, num_logprobs=5)
    for count, length, sampling in ((4, 2000, GREEDY), (1, 700, drawn), (64, 60, drawn), (64, 30, GREEDY)):
        ask(driver, count, length, sampling)
    driver.close()
    assert times_asked() == asked
