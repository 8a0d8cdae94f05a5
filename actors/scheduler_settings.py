"""An engine's settings and its model, made into what the scheduler must know."""

from __future__ import annotations

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig
from ..errors import ConfigError
from ..scheduler.config import SchedulerConfig
from ..scheduler.cost import StepCost


def max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    """Most tokens of a sequence; raises ConfigError where the settings ask for more than the model can."""
    longest = model_config.max_model_len
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(f"max_model_len is {config.max_model_len}, but the model's positions end at {longest}")
    return config.max_model_len or longest


def scheduler_config(
    config: EngineConfig,
    model_config: ModelConfig,
    num_blocks: int,
    epoch: int = 0,
    step_cost: StepCost | None = None,
) -> SchedulerConfig:
    """The scheduler's view of an engine with a KV cache of `num_blocks` blocks, and steps that cost so much."""
    return SchedulerConfig(
        num_stages=config.pipeline_parallel_size,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=max_model_len(config, model_config),
        vocab_size=model_config.vocab_size,
        enable_prefix_caching=config.enable_prefix_caching,
        async_scheduling=config.async_scheduling,
        max_unretired_plans=config.unretired_plans,
        policy=config.policy,
        throttle_steps=config.throttle_steps,
        min_prefill_tokens=config.least_prefill_tokens,
        max_prefill_tokens=config.max_prefill_tokens,
        step_cost=step_cost,
        max_decode_slowdown=config.max_decode_slowdown,
        epoch=epoch,
    )
