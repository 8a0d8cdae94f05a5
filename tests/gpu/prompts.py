"""Engines of a tiny model on GPUs: their settings, and what they are asked."""

from __future__ import annotations

from penstock.configs.sampling import SamplingParams

SETTINGS = {"dtype": "float32", "device": "cuda", "block_size": 16, "max_model_len": 128, "max_num_seqs": 32}
PROMPTS = [[5, 9, 13, 200, 41] * 3, [7, 8], list(range(20, 60)), [100] * 9] * 4
NUM_DIFFERENT = 4
LENGTH = 24


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
