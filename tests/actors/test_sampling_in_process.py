"""Same seed, same tokens, at any number of stages, in any batch and after a preemption; logprobs are transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import Logprobs, Sampling, ints
from penstock.scheduler.scheduler import Scheduler

from ..model.tiny import write_tiny_model

PROMPTS = [[5, 9, 13, 200, 41] * 3, [7, 8], list(range(20, 60)), [100] * 9]
LENGTH = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return folder, write_tiny_model(folder, "qwen3")


def generate(
    folder: Path, stages: int, samplings: list[Sampling], num_blocks: int = 80, ranks: int = 1
) -> tuple[list[list[TokenEvent]], int]:
    """Each prompt's events with its own sampling, and how often a sequence was preempted."""
    config = EngineConfig(
        model=str(folder),
        pipeline_parallel_size=stages,
        tensor_parallel_size=ranks,
        block_size=8,
        max_model_len=64,
        max_num_seqs=16,
        max_num_batched_tokens=16,
        device="cpu",
    )
    model_config = read_model_config(folder)
    driver = start_in_process(
        config, model_config, Scheduler(scheduler_config(config, model_config, num_blocks)), num_blocks
    )
    for i, sampling in enumerate(samplings):
        driver.scheduler.add_request(NewRequest(str(i), ints(PROMPTS[i]), LENGTH, sampling, ignore_eos=True))
    events: list[list[TokenEvent]] = [[] for _ in samplings]
    for event in driver.run():
        events[int(event.request_id)].append(event)
    driver.close()
    return events, driver.scheduler.stats().num_preemptions


def tokens(events: list[TokenEvent]) -> list[int]:
    return [int(t) for event in events for t in event.token_ids]


SEEDED = [
    Sampling(temperature=1.3, seed=11),
    Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=12, presence_penalty=0.5),
    Sampling(temperature=1.0, min_p=0.02, seed=13, repetition_penalty=1.2, frequency_penalty=0.3),
    Sampling(temperature=2.0, top_p=0.8, seed=14, logit_bias=((9, 2.0),)),
]


def test_the_same_seed_draws_the_same_tokens_at_any_number_of_stages_and_ranks_and_after_a_preemption(
    tiny: tuple[Path, Any],
) -> None:
    folder, _ = tiny
    expected = [tokens(e) for e in generate(folder, 1, SEEDED)[0]]
    assert all(len(t) == LENGTH for t in expected)
    assert len({tuple(t) for t in expected}) == len(expected)
    for stages, ranks, num_blocks in ((2, 1, 80), (3, 1, 80), (4, 2, 80), (1, 1, 12), (4, 1, 12)):
        events, preemptions = generate(folder, stages, SEEDED, num_blocks, ranks)
        assert [tokens(e) for e in events] == expected, f"{stages} stages, {ranks} ranks, {num_blocks} blocks"
        assert (preemptions > 0) == (num_blocks == 12)


def test_a_request_draws_the_same_alone_and_in_a_batch(tiny: tuple[Path, Any]) -> None:
    folder, _ = tiny
    together, _ = generate(folder, 2, SEEDED)
    alone, _ = generate(folder, 2, SEEDED[:1])
    assert tokens(alone[0]) == tokens(together[0])


@torch.inference_mode()
def reference_logprobs(model: Any, token_ids: list[int]) -> np.ndarray:
    logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits.float().log_softmax(-1).numpy()


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("num_blocks", [80, 12])
def test_logprobs_of_sampled_top_and_prompt_tokens_are_those_of_transformers(
    tiny: tuple[Path, Any], stages: int, num_blocks: int
) -> None:
    folder, model = tiny
    asking = [Sampling(num_logprobs=3, num_prompt_logprobs=2), Sampling(num_logprobs=0)] * 2
    events, preemptions = generate(folder, stages, asking, num_blocks)
    assert (preemptions > 0) == (num_blocks == 12)
    for i, prompt in enumerate(PROMPTS):
        generated = tokens(events[i])
        expected = reference_logprobs(model, prompt + generated)
        scored = [x for event in events[i] for x in event.logprobs]
        check(scored, expected, prompt + generated, len(prompt), LENGTH, 3 if i % 2 == 0 else 0)
        if i % 2 == 0:
            prompt_scored = [x for event in events[i] for x in event.prompt_logprobs]
            check(prompt_scored, expected, prompt, 1, len(prompt) - 1, 2)


def check(scored: list[Logprobs], expected: np.ndarray, ids: list[int], start: int, count: int, num_top: int) -> None:
    places = [x.start + k for x in scored for k in range(len(x.token_ids))]
    assert places == list(range(start, start + count)), "each token is scored once, in order"
    for x in scored:
        for k in range(len(x.token_ids)):
            row = expected[x.start + k - 1]
            assert x.token_ids[k] == ids[x.start + k]
            assert x.values[k] == pytest.approx(row[x.token_ids[k]], abs=1e-4)
            assert x.ranks[k] == 1 + (row > row[x.token_ids[k]]).sum()
            assert x.top_ids[k].tolist() == np.argsort(-row, kind="stable")[:num_top].tolist()
            assert x.top_values[k] == pytest.approx(np.sort(row)[::-1][:num_top], abs=1e-4)
