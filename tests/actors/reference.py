"""A scenario that exercises everything at once, and transformers' answers to it.

Prompts of many lengths, some sharing a beginning, arrive while others run; two are aborted on the way. With
`max_num_batched_tokens=16` every longer prompt is chunked; with a small cache sequences are preempted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.actors.in_process import PipelineDriver
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import Sampling, ints

MAX_TOKENS = 12


@dataclass(frozen=True)
class Scenario:
    """Prompts with the step at which each arrives; the last `num_aborted` are aborted soon after."""

    prompts: tuple[tuple[int, ...], ...]
    arrivals: tuple[int, ...]
    num_aborted: int = 2

    @property
    def finished(self) -> Sequence[tuple[int, ...]]:
        return self.prompts[: -self.num_aborted]


def scenario(seed: int, vocab_size: int) -> Scenario:
    """Eight prompts that finish and two that are aborted."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, vocab_size) for _ in range(21)]
    lengths = (1, 5, 23, 40, 9, 17, 33, 12, 30, 8)
    prompts = [[rng.randrange(3, vocab_size) for _ in range(n)] for n in lengths]
    for i in (2, 3, 6):  # prefixes shared over several blocks; the first of them also as a full hit
        prompts[i] = (shared + prompts[i])[: lengths[i]]
    prompts[7] = prompts[3][:32]
    return Scenario(tuple(map(tuple, prompts)), (0, 0, 0, 1, 2, 3, 6, 9, 1, 4))


def expected_tokens(model: Any, prompts: Sequence[Sequence[int]], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """transformers' greedy continuation of each prompt alone, past any eos."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@dataclass
class Outcome:
    """What came back for each request."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    preemptions: int = 0


def play(driver: PipelineDriver, scene: Scenario, sampling: Sampling = Sampling()) -> Outcome:  # noqa: B008
    """Runs the scenario: a request arrives before the plan of its step, is aborted four plans later."""
    outcome, waiting = Outcome(), list(enumerate(scene.arrivals))
    aborting = {len(scene.prompts) - 1 - i for i in range(scene.num_aborted)}
    turn = 0
    while waiting or driver.scheduler.num_unfinished or driver.scheduler.num_unretired:
        for i, arrival in [w for w in waiting if w[1] <= turn]:
            waiting.remove((i, arrival))
            request = NewRequest(f"r{i}", ints(scene.prompts[i]), MAX_TOKENS, sampling, ignore_eos=True)
            driver.scheduler.add_request(request)
        for i in [i for i in aborting if scene.arrivals[i] + 4 <= turn]:
            aborting.remove(i)
            driver.scheduler.abort("", f"r{i}")
        driver.publish()
        driver.retire()
        driver.scheduler.check()
        collect(driver, outcome)
        turn += 1
    outcome.preemptions = driver.scheduler.stats().num_preemptions
    return outcome


def collect(driver: PipelineDriver, outcome: Outcome) -> None:
    for event in driver.scheduler.take_events():
        tokens = outcome.tokens.setdefault(event.request_id, [])
        assert event.start == len(tokens), "a token is missing or came twice"
        tokens += event.token_ids.tolist()
        if event.finish_reason:
            assert event.request_id not in outcome.reasons, "a request ended twice"
            outcome.reasons[event.request_id] = event.finish_reason
