"""Engines of four ranks over two GPUs, each shared by two ranks: FOLDER of a model, GPUS as `CUDA_VISIBLE_DEVICES`
names one for each rank, and settings as JSON, one engine after the other; prints each one's greedy tokens as JSON.

NCCL takes no two ranks of a communicator on one GPU, so ranks that talk must be on different ones.
"""

from __future__ import annotations

import json
import os
import sys

import ray

from penstock.actors.llm import LLM
from penstock.configs.sampling import SamplingParams

from .prompts import LENGTH, PROMPTS

NUM_RANKS = 4


def main(folder: str, gpus: str, *engines: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # Ray gives its GPU i to be the i-th of them
    ray.init(
        num_cpus=16, num_gpus=NUM_RANKS, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False
    )
    params = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    common = {"dtype": "float32", "device": "cuda", "block_size": 16, "max_model_len": 128, "max_num_seqs": 32}
    for settings in map(json.loads, engines):
        with LLM(folder, skip_tokenizer_init=True, num_kv_blocks=64, **common, **settings) as llm:
            outputs = llm.generate(PROMPTS, params)
            print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
