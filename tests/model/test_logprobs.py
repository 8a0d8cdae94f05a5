"""Log-probabilities are those of the raw logits, for sampled tokens and for prompts in any chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from penstock.model.logprobs import PromptLogprobs
from penstock.model.sampler import Sampler
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import GREEDY, Logprobs, Registration, Sampling, StepPlan, ints

from .sampler_rig import SamplerRig

V, H = 40, 6
HEAD = torch.randn(H, V, generator=torch.Generator().manual_seed(3))


def check(found: Logprobs, token_ids: Sequence[int], raw: Tensor, num_top: int) -> None:
    """The entry scores token_ids [k] under raw logits [k, V]."""
    expected = raw.double().log_softmax(-1).numpy()
    assert found.token_ids.tolist() == list(token_ids)
    assert found.top_ids.shape == found.top_values.shape == (len(token_ids), num_top)
    for k, token in enumerate(token_ids):
        order = np.argsort(-expected[k])
        assert abs(found.values[k] - expected[k, token]) < 1e-5
        assert found.ranks[k] == list(order).index(token) + 1
        assert found.top_ids[k].tolist() == order[:num_top].tolist()
        np.testing.assert_allclose(found.top_values[k], expected[k, order[:num_top]], atol=1e-5)


def test_sampled_tokens_are_scored_before_penalties_and_temperature_for_rows_that_ask() -> None:
    rig = SamplerRig(V)
    settings = [
        GREEDY,
        Sampling(temperature=2.0, seed=1, top_k=30, num_logprobs=3),
        Sampling(repetition_penalty=5.0, num_logprobs=0),
        Sampling(logit_bias=((4, 50.0),), num_logprobs=5),
    ]
    inputs = rig.apply([3, 1, 0, 2], [rig.register(slot, [1, 2], [], s) for slot, s in enumerate(settings)])
    raw = torch.randn(4, V, generator=torch.Generator().manual_seed(0)) * 3
    result = Sampler.to_result(7, 2, rig.sample(raw, inputs).to_host())
    assert (result.step, result.epoch, len(result.token_ids)) == (7, 2, 4)
    assert [(x.row, x.start) for x in result.logprobs] == [(0, 2), (1, 2), (3, 2)]
    for found, num_top in zip(result.logprobs, (5, 3, 0), strict=True):
        check(found, [int(result.token_ids[found.row])], raw[found.row : found.row + 1], num_top)


def test_a_token_that_ties_with_the_most_likely_has_rank_one() -> None:
    rig = SamplerRig(4)
    inputs = rig.apply([0], [rig.register(0, [1], [], Sampling(num_logprobs=0))])
    result = Sampler.to_result(0, 0, rig.sample(torch.tensor([[1.0, 5, 5, 0]]), inputs))
    assert result.logprobs[0].ranks.tolist() == [1]


def hidden_of(tokens: Sequence[int]) -> Tensor:
    """A model: hidden states [k, H] that depend on the token."""
    return torch.stack([torch.randn(H, generator=torch.Generator().manual_seed(int(token))) for token in tokens])


def score_plans(plans: Sequence[StepPlan], vocab_size: int = V) -> tuple[list[list[Logprobs]], list[int]]:
    """What each plan scores, and how many rows each call of the head had."""
    mirror, prompts, heads = Mirror(4, 8, 16), PromptLogprobs(vocab_size, "cpu"), []

    def compute_logits(hidden: Tensor) -> Tensor:
        heads.append(len(hidden))
        return hidden @ HEAD

    found = []
    for plan in plans:
        inputs = mirror.apply(plan)
        step = prompts.prepare(inputs, mirror)
        scores = prompts.score(hidden_of(inputs.token_ids.tolist()), step, compute_logits).to_host() if step else None
        found.append(Sampler.to_result(plan.step, 0, None, scores).prompt_logprobs)
    return found, heads


def registration(slot: int, tokens: Sequence[int], num_top: int, num_prompt: int | None = None) -> Registration:
    return Registration(slot, 1, 0, num_prompt or len(tokens), ints(tokens), Sampling(num_prompt_logprobs=num_top))


def plan(step: int, slots: list[int], counts: list[int], new: Sequence[Registration] = ()) -> StepPlan:
    blocks = ints([r.slot for r in new for _ in range(2)])
    return StepPlan(step, ints(slots), ints(counts), registrations=list(new), block_slots=blocks, block_ids=blocks)


def test_a_prompt_is_scored_in_the_chunks_that_compute_it_and_only_where_asked() -> None:
    long, short, silent = [5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [30, 31, 32]
    new = [registration(0, long, 4), registration(1, silent, -1), registration(2, short, 0)]
    found, heads = score_plans([plan(0, [0], [4], new[:1]), plan(1, [1, 0, 2], [3, 4, 3], new[1:]), plan(2, [0], [1])])
    assert [[(x.row, x.start) for x in each] for each in found] == [[(0, 1)], [(1, 5), (2, 1)], []]
    check(found[0][0], long[1:5], hidden_of(long[0:4]) @ HEAD, 4)
    check(found[1][0], long[5:9], hidden_of(long[4:8]) @ HEAD, 4)
    check(found[1][1], short[1:3], hidden_of(short[0:2]) @ HEAD, 0)
    assert heads == [4, 6]


def test_the_head_sees_a_bounded_number_of_rows_at_a_time() -> None:
    tokens = list(range(2, 13))
    (found,), heads = score_plans([plan(0, [0], [11], [registration(0, tokens, 2)])], vocab_size=1 << 22)
    assert heads == [4, 4, 2]
    check(found[0], tokens[1:], hidden_of(tokens[:-1]) @ HEAD, 2)


def test_a_sequence_that_resumes_with_generated_tokens_is_not_scored_again() -> None:
    found, heads = score_plans([plan(0, [0], [5], [registration(0, [1, 2, 3, 4, 5], 2, num_prompt=3)])])
    assert (found, heads) == ([[]], [])
