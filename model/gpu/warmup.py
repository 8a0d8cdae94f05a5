"""The largest step a stage may meet, run before the cache is made: loads every kernel and measures the memory left.

The cache then takes what `gpu_memory_utilization` leaves beside weights, that step, and graphs. Once all of that is
there, the step runs again, so that the caching allocator holds what steps need: none has to ask the driver, which would
wait for the device. The allocator keeps memory by the stream that it was for, so all this runs on the one that serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...configs.engine import EngineConfig
from ...configs.sampling import MAX_LOGPROBS
from ...errors import ConfigError
from ..batch import Batch
from ..decoder import StageModule
from ..draw import NUCLEUS, DrawStep
from ..exchange import Exchange
from ..kv_cache import KVCache
from ..launch import Launcher
from ..limits import StepLimits
from ..logprobs import Span
from ..sampler import Sampler, SamplingStep, ScoreStep
from .buckets import Buckets
from .eager import EagerLauncher
from .graphs import GraphLauncher

log = logging.getLogger(__name__)

_GRAPH_BYTES = 8 << 20  # of one graph: 35 of them over 35 layers took 268 MiB (LOG.md)
_SPARE_BYTES = 512 << 20  # fragmentation, and kernels that load late
_FEW_ROWS = 16  # some of torch's kernels are others for few rows

MakeCache = Callable[[int], KVCache]


def blocks_in_memory(
    module: StageModule, sampler: Sampler | None, limits: StepLimits, config: EngineConfig, make_cache: MakeCache
) -> int:
    """Runs the largest step; how many blocks of cache fit on this rank.

    Raises ConfigError when no block fits.
    """
    device = module.rotary.device
    torch.cuda.reset_peak_memory_stats(device)
    num_blocks = -(-limits.max_num_batched_tokens // _longest(limits)) * _width(limits)
    cache = make_cache(num_blocks)
    module.bind_cache(cache)
    run_largest_step(module, sampler, limits, num_blocks)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    elsewhere = total - free - torch.cuda.memory_reserved(device)  # CUDA's own, NCCL's, other processes'
    peak = torch.cuda.max_memory_allocated(device) - cache.num_bytes
    num_graphs = 0 if config.enforce_eager else _num_graphs(module, limits)
    reserve = _SPARE_BYTES + num_graphs * _GRAPH_BYTES
    available = int(total * config.gpu_memory_utilization) - elsewhere - peak - reserve
    smallest = make_cache(1)
    module.bind_cache(smallest)
    per_block = smallest.num_bytes
    del cache  # nobody has it any more
    torch.cuda.empty_cache()
    gib = [x / (1 << 30) for x in (total, elsewhere, peak, reserve, max(available, 0))]
    log.info("memory in GiB: %.1f in all, %.1f others', %.1f a step's peak, %.1f kept, %.1f for the cache", *gib)
    if config.num_kv_blocks is None and available < 2 * per_block:
        raise ConfigError(
            f"gpu_memory_utilization {config.gpu_memory_utilization} leaves no memory for the KV cache: "
            f"{gib[0]:.1f} GiB in all, of which {gib[1]:.1f} are used elsewhere and a step takes {gib[2] + gib[3]:.1f}"
        )
    return max(0, available) // per_block - 1  # one block pads steps


def _num_graphs(module: StageModule, limits: StepLimits) -> int:
    buckets = Buckets(limits, module.pads_chunks)
    return len(buckets.shapes()) + (len(buckets.row_counts) if module.lm_head is not None else 0)


def make_launcher(
    module: StageModule, limits: StepLimits, scratch_block: int, exchange: Exchange, eager: bool
) -> Launcher:
    """The way into the layers over the cache that the module has; `scratch_block` is a block that no sequence has."""
    device = module.rotary.device
    if eager:
        return EagerLauncher(module, device, limits, scratch_block, exchange)
    return GraphLauncher(module, device, limits, scratch_block, exchange)


@torch.inference_mode()
def run_largest_step(module: StageModule, sampler: Sampler | None, limits: StepLimits, num_blocks: int) -> None:
    """Runs it over the cache that the module has, of so many blocks: what lies in them is written over."""
    tokens = limits.max_num_batched_tokens
    batch = _prompts(limits, num_blocks, module.rotary.device)
    hidden = torch.zeros(tokens, limits.hidden_size, dtype=limits.dtype, device=module.rotary.device)
    if module.embed_tokens is not None:
        hidden = module.embed(batch.token_ids)
    hidden = module(hidden, batch)
    if sampler is not None:
        rows = min(tokens, limits.max_num_seqs)
        for count in sorted({1, min(_FEW_ROWS, rows), rows}):
            _sample_all(module, sampler, hidden, count)


def _prompts(limits: StepLimits, num_blocks: int, device: torch.device) -> Batch:
    """A step filled with prompts of the greatest length; they share blocks where there are few."""
    tokens, longest, width = limits.max_num_batched_tokens, _longest(limits), _width(limits)
    lengths = np.diff(np.r_[0:tokens:longest, tokens]).astype(np.int32)
    starts = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    table = (np.arange(len(lengths) * width, dtype=np.int32) % num_blocks).reshape(len(lengths), width)
    positions = np.concatenate([np.arange(n) for n in lengths])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    slots = table[rows, positions // limits.block_size] * limits.block_size + positions % limits.block_size

    def there(values: NDArray[Any], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(values).to(device, dtype)

    return Batch(
        num_tokens=tokens,
        num_rows=len(lengths),
        max_query_len=longest,
        max_seq_len=longest,
        all_decode=tokens == len(lengths),
        token_ids=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions=there(positions, torch.int64),
        cache_slots=there(slots, torch.int64),
        query_starts=there(starts, torch.int32),
        seq_lens=there(lengths, torch.int32),
        block_table=there(table, torch.int32),
        host_query_starts=starts,
        host_seq_lens=lengths,
    )


def _longest(limits: StepLimits) -> int:
    """Tokens of the longest prompt that a step may hold whole."""
    return min(limits.max_model_len, limits.max_num_batched_tokens)


def _width(limits: StepLimits) -> int:
    """Blocks of that prompt."""
    return -(-_longest(limits) // limits.block_size)


def _sample_all(module: StageModule, sampler: Sampler, hidden: Tensor, rows: int) -> None:
    """The dearest sampling: every row is masked, draws from its nucleus and is scored."""
    logits = module.logits(hidden[:rows])
    for power in range(rows.bit_length()):  # fewer rows are cut finer: a kernel for each way
        sampler.largest(logits[: 1 << power])
    sampler.grammars.warm(logits)
    device, every = logits.device, torch.arange(rows)
    columns = torch.ones(4, rows, 1)
    draws = DrawStep(NUCLEUS, True, every, torch.zeros(rows, 2, dtype=torch.int32), columns)
    scores = ScoreStep(every, [Span(row, 1, 1, min(MAX_LOGPROBS, logits.shape[-1])) for row in range(rows)])
    sampler.sample(logits, SamplingStep(draws=[draws], scores=scores))
    torch.cuda.synchronize(device)
