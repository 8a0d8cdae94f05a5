"""How many layers each stage takes."""

from __future__ import annotations

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig
from ..errors import ConfigError
from .weight_map import stage_weights

_GPU_ROWS, _GPU_LENGTH = 64, 400  # a step of decodes as it is typical: sequences, and tokens of each
_GPU_OVERHEAD = 100_000_000  # weights that a GPU could read in the time between a layer's, or the head's, kernels


def partition_for(engine: EngineConfig, config: ModelConfig) -> list[range]:
    """The engine's partition. On a GPU a layer also costs its reading of the cache, and both it and the head cost
    their small kernels: for Qwen3-8B on an H200 the head is then 2.1 layers, and was measured to be 2.2 (LOG.md).
    """
    layer_extra = head_extra = 0
    if engine.device == "cuda":
        layer_extra = 2 * config.num_key_value_heads * config.head_dim * _GPU_ROWS * _GPU_LENGTH + _GPU_OVERHEAD
        head_extra = _GPU_OVERHEAD
    explicit = engine.pipeline_layer_partition
    return partition_layers(config, engine.pipeline_parallel_size, explicit, layer_extra, head_extra)


def partition_layers(
    config: ModelConfig,
    num_stages: int,
    explicit: list[int] | None = None,
    layer_extra: int = 0,
    head_extra: int = 0,
) -> list[range]:
    """Contiguous layer ranges, one for each stage, of at least one layer.

    Without `explicit` the slowest stage is made as fast as it can be, a stage's cost being the weights that it reads
    for a step: its layers', `layer_extra` for each added, and, on the last, the head's and `head_extra`. The embedding
    costs nothing, it only looks rows up. Among equal partitions the earlier stages take more.
    Raises ConfigError when there are more stages than layers, or when `explicit` doesn't add up.
    """
    num_layers = config.num_hidden_layers
    if num_stages < 1 or num_stages > num_layers:
        raise ConfigError(f"{num_stages} pipeline stages can't share {num_layers} layers: each needs at least one")
    counts = (
        _checked(explicit, num_stages, num_layers)
        if explicit is not None
        else _balanced(config, num_stages, layer_extra, head_extra)
    )
    ranges, start = [], 0
    for count in counts:
        ranges.append(range(start, start + count))
        start += count
    return ranges


def _checked(explicit: list[int], num_stages: int, num_layers: int) -> list[int]:
    if len(explicit) != num_stages:
        raise ConfigError(f"pipeline_layer_partition {explicit} names {len(explicit)} stages, there are {num_stages}")
    if min(explicit) < 1:
        raise ConfigError(f"pipeline_layer_partition {explicit} holds a stage without layers")
    if sum(explicit) != num_layers:
        raise ConfigError(f"pipeline_layer_partition {explicit} adds up to {sum(explicit)}, not to {num_layers} layers")
    return explicit


def _balanced(config: ModelConfig, num_stages: int, layer_extra: int, head_extra: int) -> list[int]:
    """For each size of the last stage the others share evenly; the best of them, the larger last stage on a tie."""
    layer, head = step_costs(config)
    layer, head = layer + layer_extra, head + head_extra
    num_layers = config.num_hidden_layers
    if num_stages == 1:
        return [num_layers]
    best: tuple[float, int] | None = None
    for last in range(1, num_layers - num_stages + 2):
        others = -(-(num_layers - last) // (num_stages - 1))
        cost = max(others * layer, last * layer + head)
        if best is None or (cost, -last) < (best[0], -best[1]):
            best = (cost, last)
    assert best is not None
    share, extra = divmod(num_layers - best[1], num_stages - 1)
    return [share + (stage < extra) for stage in range(num_stages - 1)] + [best[1]]


def step_costs(config: ModelConfig) -> tuple[int, int]:
    """Weights that a step reads for one layer, and for the head."""
    layer = [p for p in stage_weights(config, range(1), 0, 1) if p.parameter.startswith("layers.0.")]
    return sum(piece.num_values for piece in layer), config.vocab_size * config.hidden_size
