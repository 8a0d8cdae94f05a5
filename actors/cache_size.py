"""How many blocks of KV cache an engine has: the same on every rank, so the tightest stage decides."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig
from ..errors import ConfigError
from ..model import kv_cache
from ..model.partition import partition_for
from ..model.stage import stage_dtype
from ..model.tensor_parallel import kv_heads_per_rank, shard
from .scheduler_settings import max_model_len

log = logging.getLogger(__name__)

DEFAULT_BYTES = 512 << 20  # of each rank, on a CPU


def bytes_per_block(config: EngineConfig, model_config: ModelConfig) -> list[int]:
    """Memory of one block on a rank of each stage. Raises ConfigError for ranks that can't share the heads."""
    shard("attention heads", model_config.num_attention_heads, config.tensor_parallel_size)
    heads = kv_heads_per_rank(model_config.num_key_value_heads, config.tensor_parallel_size)
    dtype = stage_dtype(config, model_config)
    return [
        kv_cache.bytes_per_block(len(span.attentions), config.block_size, heads, model_config.head_dim, dtype)
        for span in partition_for(config, model_config)
    ]


def num_kv_blocks(config: EngineConfig, model_config: ModelConfig) -> int:
    """Blocks as set, or what the memory for the cache holds on the stage with most layers.

    0 on GPUs where nothing is set: the workers measure it. Raises ConfigError when the memory holds none; warns when
    one sequence of `max_model_len` doesn't fit.
    """
    longest = max_model_len(config, model_config)
    if _are_measured(config):
        return 0
    blocks = config.num_kv_blocks or _blocks_in_memory(config, model_config, longest)
    _warn_if_short(config, blocks, longest)
    return blocks


def agreed_kv_blocks(config: EngineConfig, model_config: ModelConfig, of_ranks: Iterable[int]) -> int:
    """Blocks that every rank has. Of those that the workers measured warns as `num_kv_blocks` does of others."""
    blocks = min(of_ranks)
    if _are_measured(config):
        _warn_if_short(config, blocks, max_model_len(config, model_config))
    return blocks


def _are_measured(config: EngineConfig) -> bool:
    return config.device == "cuda" and config.num_kv_blocks is None and config.kv_cache_memory_bytes is None


def _warn_if_short(config: EngineConfig, blocks: int, longest: int) -> None:
    if blocks * config.block_size < longest:
        log.warning(
            "the KV cache holds %d tokens (%d blocks of %d), less than max_model_len %d: longer requests are refused",
            *(blocks * config.block_size, blocks, config.block_size, longest),
        )


def _blocks_in_memory(config: EngineConfig, model_config: ModelConfig, longest: int) -> int:
    largest = max(bytes_per_block(config, model_config))
    memory = config.kv_cache_memory_bytes or DEFAULT_BYTES
    blocks = memory // largest
    if blocks < 1:
        raise ConfigError(f"{memory} bytes of KV cache hold no block: one takes {largest} bytes on the largest stage")
    if config.kv_cache_memory_bytes is not None:
        return blocks
    return min(blocks, config.max_num_seqs * -(-longest // config.block_size))
