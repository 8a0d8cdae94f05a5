"""Times one decode step of a stage's module, beside its matrix products alone.

    python tests/benchmarks/bench_layers.py [--threads 2] [--dtype bfloat16] [--rows 1 16 64] [--context 200]

The shape is a Qwen3 of 110 M parameters: hidden 1024, intermediate 3072, 8 layers, 16 heads, 8 key/value heads of 64,
vocabulary 8192, tied. Weights are random. Printed: median wall time, and process CPU time, which other work on the
machine disturbs less (with more than one thread it includes the threads' spinning).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from penstock.configs.model_config import ModelConfig
from penstock.configs.rope_config import RopeConfig
from penstock.model.batch import Batch
from penstock.model.decoder import StageModule, build_stage_module
from penstock.model.kv_cache import KVCache
from penstock.model.layer_span import LayerSpan
from penstock.model.loader import dummy_weights
from penstock.model.tensor_parallel import NoTensorParallel
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Registration, StepPlan, ints

BLOCK_SIZE = 16

QWEN3_110M = ModelConfig(
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=8192,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=1e6, rotary_dim=64),
    tie_word_embeddings=True,
    qk_norm=True,
    dtype="bfloat16",
)


def build(config: ModelConfig, dtype: torch.dtype, num_blocks: int) -> StageModule:
    """The whole model as one stage, with a cache of finite noise."""
    layers = range(config.num_hidden_layers)
    module = build_stage_module(config, LayerSpan.of(layers), NoTensorParallel(), dtype=dtype, first=True, last=True)
    dummy_weights(module, config, 0)
    cache = KVCache(len(layers), num_blocks, BLOCK_SIZE, config.num_key_value_heads, config.head_dim, dtype)
    module.bind_cache(cache)
    return module


def prefill_batch(rows: int, length: int) -> tuple[Mirror, Batch]:
    """One step that computes `length` tokens of each row; blocks are dealt out at random."""
    width = -(-(length + 64) // BLOCK_SIZE)
    mirror = Mirror(rows, width, BLOCK_SIZE)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, QWEN3_110M.vocab_size, (rows, length)).astype(np.int32)
    plan = StepPlan(
        step=0,
        slots=ints(range(rows)),
        num_tokens=ints([length] * rows),
        registrations=[Registration(i, 0, 0, length, tokens[i]) for i in range(rows)],
        block_slots=ints(np.repeat(np.arange(rows), width)),
        block_ids=ints(rng.permutation(rows * width)),
    )
    return mirror, Batch.from_step(mirror.apply(plan))


def decode_batch(mirror: Mirror, rows: int) -> Batch:
    """The next step: one token of each row."""
    inputs = mirror.apply(StepPlan(step=1, slots=ints(range(rows)), num_tokens=ints([1] * rows)))
    inputs.token_ids[:] = 5
    return Batch.from_step(inputs)


def products_alone(rows: int, dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products of a step, as plain `F.linear` calls."""
    config = QWEN3_110M
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    width = config.num_attention_heads * config.head_dim
    shapes = [
        (config.hidden_size, heads),
        (width, config.hidden_size),
        (config.hidden_size, 2 * config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
    ] * config.num_hidden_layers + [(config.hidden_size, config.vocab_size)]
    pairs = [(torch.randn(rows, i, dtype=dtype), torch.randn(o, i, dtype=dtype)) for i, o in shapes]
    return lambda: [F.linear(x, weight) for x, weight in pairs]


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall and CPU milliseconds."""
    work()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return median(walls) * 1e3, median(cpus) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    width = -(-(args.context + 64) // BLOCK_SIZE)
    module = build(QWEN3_110M, dtype, max(args.rows) * width)

    def step(batch: Batch) -> torch.Tensor:
        return module.logits(module(module.embed(batch.token_ids), batch))

    print(f"{'rows':>5} {'work':<16} {'wall ms':>9} {'CPU ms':>9}")
    with torch.inference_mode():
        for rows in args.rows:
            mirror, prefill = prefill_batch(rows, args.context)
            decode = decode_batch(mirror, rows)
            report(rows, "prefill", timed(lambda batch=prefill: step(batch), 2))  # type: ignore[misc]
            report(rows, "decode step", timed(lambda batch=decode: step(batch), args.repeats))  # type: ignore[misc]
            report(rows, "products alone", timed(products_alone(rows, dtype), args.repeats))


def report(rows: int, work: str, times: tuple[float, float]) -> None:
    print(f"{rows:>5} {work:<16} {times[0]:>9.2f} {times[1]:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
