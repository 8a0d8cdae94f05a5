"""On a GPU: the same noise, the same tokens, and nothing that waits for the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from penstock.model.logprobs import PromptLogprobs
from penstock.model.noise import noise_bits
from penstock.model.sampler import Sampler, largest_of
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import GREEDY, Registration, Sampling, StepPlan, StepResult, ints

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

V, H = 30011, 16
SETTINGS = [
    GREEDY,
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, seed=2, top_k=20, top_p=0.95, num_logprobs=4),
    Sampling(temperature=1.2, seed=3, top_k=500, min_p=0.01),
    Sampling(temperature=1.0, seed=4, top_p=0.9, num_prompt_logprobs=2),
    Sampling(temperature=1.0, seed=5, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
    Sampling(temperature=2.0, seed=6, min_tokens=2, stop_token_ids=(1, 2), logit_bias=((1, 9.0),)),
]


def run(device: str) -> list[StepResult]:
    """A prompt and three decodes of one slot for each setting, with logits made on the CPU."""
    slots, generator = list(range(len(SETTINGS))), torch.Generator().manual_seed(0)
    mirror, sampler, prompts = Mirror(8, 1, 64), Sampler(8, V, device), PromptLogprobs(V, device)
    head, results = torch.randn(H, V, generator=generator), []
    head_there = head.to(device)
    for step in range(4):
        new = [Registration(s, 1, 0, 4, ints([5, 6, 6, 7 + s]), SETTINGS[s]) for s in slots] if step == 0 else []
        blocks = ints([r.slot for r in new])
        inputs = mirror.apply(
            StepPlan(
                step, ints(slots), ints([1 if step else 4] * len(slots)), registrations=new,
                block_slots=blocks, block_ids=blocks,
            )
        )  # fmt: skip
        hidden = torch.randn(inputs.total_tokens, H, generator=generator)
        logits = (hidden[inputs.query_starts[inputs.sample_rows + 1] - 1] @ head).to(device)
        results.append(_step(sampler, prompts, (inputs, mirror), (hidden.to(device), logits, head_there)))
    return results


def _step(
    sampler: Sampler, prompts: PromptLogprobs, host: tuple[StepInput, Mirror], device: tuple[Tensor, Tensor, Tensor]
) -> StepResult:
    (inputs, mirror), (hidden, logits, head) = host, device
    step, prompt = sampler.prepare(inputs, mirror), prompts.prepare(inputs, mirror)

    def compute_logits(rows: Tensor) -> Tensor:
        return torch.mm(rows, head)

    torch.cuda.set_sync_debug_mode("error")  # operations that wait for the device raise
    scores = prompts.score(hidden, prompt, compute_logits).to_host() if prompt else None
    sampled = sampler.sample(logits, step).to_host()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return sampler.to_result(inputs.step, 0, sampled, scores)


def test_the_noise_is_made_of_the_same_integers() -> None:
    keys, ids = torch.randint(-(1 << 31), 1 << 31, (16, 2), dtype=torch.int32), torch.arange(V, dtype=torch.int32)
    assert torch.equal(noise_bits(keys, ids), noise_bits(keys.cuda(), ids.cuda()).cpu())


def test_a_gpu_samples_what_a_cpu_samples_without_waiting() -> None:
    for on_gpu, on_cpu in zip(run("cuda"), run("cpu"), strict=True):
        assert on_gpu.token_ids.tolist() == on_cpu.token_ids.tolist()
        pairs = zip(
            [*on_gpu.logprobs, *on_gpu.prompt_logprobs], [*on_cpu.logprobs, *on_cpu.prompt_logprobs], strict=True
        )
        for a, b in pairs:
            assert (a.row, a.start, a.token_ids.tolist()) == (b.row, b.start, b.token_ids.tolist())
            assert abs(a.values - b.values).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "size"), [(1, 5), (1, 151936), (3, 32000), (64, 151936), (600, 5003)])
def test_the_largest_of_a_row_is_the_first_of_equals(rows: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    whole = torch.randn(rows, size + 3, generator=generator).to(dtype)  # bfloat16 holds many equals
    whole[0] = -float("inf")
    whole[rows - 1, size - 1] = 99.0
    logits = whole.cuda()[:, :size]
    largest = largest_of(torch.device("cuda"))
    expected = whole[:, :size].float().argmax(-1)
    first = torch.stack([(row == row.max()).nonzero()[0, 0] for row in whole[:, :size].float()])
    assert torch.equal(expected, first)
    for _ in range(2):  # the second finds what the first has left behind
        assert torch.equal(largest(logits).cpu(), first)


@pytest.mark.parametrize("rows", [1, 3, 600])
def test_a_row_of_nan_gives_an_id_all_the_same(rows: int) -> None:
    """The next step embeds it: an id outside the vocabulary would end the engine."""
    logits = torch.full((rows, 5003), math.nan, device="cuda")
    logits[0, 7] = 1.0
    largest = largest_of(torch.device("cuda"))
    assert largest(logits).tolist() == [7] + [0] * (rows - 1)
