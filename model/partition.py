"""How many layers each stage takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..configs.engine import EngineConfig, shown_partition
from ..configs.model_config import ModelConfig
from ..errors import ConfigError
from .layer_span import LayerSpan
from .weight_map import stage_weights

_GPU_ROWS, _GPU_LENGTH = 64, 400  # a step of decodes as it is typical: sequences, and tokens of each
# Weights that a GPU could read in the time between kernels, those of an attention, an MLP and the head.
_GPU_ATTENTION_OVERHEAD, _GPU_MLP_OVERHEAD, _GPU_HEAD_OVERHEAD = 60_000_000, 40_000_000, 100_000_000


@dataclass(slots=True, frozen=True)
class StepCosts:
    """What a step reads, in weights: for an attention, an MLP, and the head."""

    attention: int
    mlp: int
    head: int

    def of(self, span: LayerSpan) -> int:
        """A stage's, without the head."""
        return len(span.attentions) * self.attention + len(span.mlps) * self.mlp


def partition_for(engine: EngineConfig, config: ModelConfig) -> list[LayerSpan]:
    """The engine's partition. On a GPU an attention also costs its reading of the cache, and all cost their small
    kernels: for Qwen3-8B on an H200 the head is then 2.1 layers, and was measured to be 2.2 (LOG.md).
    """
    costs = step_costs(config)
    if engine.device == "cuda":
        cached = 2 * config.num_key_value_heads * config.head_dim * _GPU_ROWS * _GPU_LENGTH
        costs = StepCosts(
            costs.attention + cached + _GPU_ATTENTION_OVERHEAD,
            costs.mlp + _GPU_MLP_OVERHEAD,
            costs.head + _GPU_HEAD_OVERHEAD,
        )
    return partition_layers(config, engine.pipeline_parallel_size, engine.pipeline_layer_partition, costs)


def partition_layers(
    config: ModelConfig,
    num_stages: int,
    explicit: list[float] | None = None,
    costs: StepCosts | None = None,
) -> list[LayerSpan]:
    """Spans in turn, one for each stage, of at least one layer.

    `explicit` is the setting, which has been checked. Without it the slowest stage is made as fast as it can be while
    the others share evenly, by these costs or by the weights that a step reads. The embedding costs nothing, it only
    looks rows up. Among equal partitions the earlier stages take more.
    Raises ConfigError for more stages than layers, and where `explicit` doesn't add up.
    """
    num_layers = config.num_hidden_layers
    if num_stages < 1 or num_stages > num_layers:
        raise ConfigError(f"{num_stages} pipeline stages can't share {num_layers} layers: each needs at least one")
    if explicit is None:
        return _balanced(num_layers, num_stages, costs or step_costs(config))
    if sum(explicit) != num_layers:
        named = f"pipeline_layer_partition {shown_partition(explicit)}"
        raise ConfigError(f"{named} adds up to {sum(explicit):g}, not to {num_layers} layers")
    return LayerSpan.in_turn(explicit)


def _balanced(num_layers: int, num_stages: int, costs: StepCosts) -> list[LayerSpan]:
    """For each size of the last stage the others share evenly; the best of them, the larger last stage on a tie."""
    if num_stages == 1:
        return [LayerSpan.of(range(num_layers))]
    found = []
    for last in range(2, 2 * (num_layers - num_stages + 1) + 1):  # halves
        share, extra = divmod(2 * num_layers - last, num_stages - 1)
        halves = [share + (stage < extra) for stage in range(num_stages - 1)] + [last]
        found.append(LayerSpan.in_turn(count / 2 for count in halves))

    def slowest(spans: list[LayerSpan]) -> tuple[int, int]:
        return max(*map(costs.of, spans[:-1]), costs.of(spans[-1]) + costs.head), spans[-1].start

    return min(found, key=slowest)


def step_costs(config: ModelConfig) -> StepCosts:
    """The weights that a step reads."""

    def of_half(half: int) -> int:
        pieces = stage_weights(config, LayerSpan(half, half + 1), 0, 1)
        return sum(piece.num_values for piece in pieces if piece.parameter.startswith("halves."))

    return StepCosts(of_half(0), of_half(1), config.vocab_size * config.hidden_size)
