"""A stage is source + layers + sink: an embedding or a link in front, a sampler or a link behind.

One GPU is embedding + all layers + sampler. What a stage is, is decided once, in `build_stage`; afterwards nothing asks
for a rank. All slot-addressed state (FutureMap, penalties, KV cache) is written on the compute lane, in plan order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig
from ..scheduler.cpu_device import CpuDevice
from ..scheduler.device import Device, Event, Link
from ..scheduler.mirror import Mirror, StepInput
from ..scheduler.plan import StepResult
from ..scheduler.stage_scheduler import StageScheduler
from ..scheduler.timeline import Timeline
from .batch import Batch
from .decoder import StageModule, build_stage_module
from .future_map import FutureMap
from .kv_cache import KVCache
from .loader import dummy_weights, load_weights
from .logprobs import PromptLogprobs
from .partition import partition_layers
from .sampler import Sampler
from .sinks import LinkSink, SamplerSink, Sink
from .sources import LinkSource, Source, TokenSource
from .tensor_parallel import TensorParallel, kv_heads_per_rank
from .work import StepWork

NUM_LINK_BUFFERS = 2


@dataclass(slots=True)
class StagePorts:
    """A rank's ways to its peers; None where it has no such peer."""

    tensor_parallel: TensorParallel
    upstream: Link | None = None
    downstream: Link | None = None
    token_send: Link | None = None  # last of several stages: to stage 0
    token_receive: Link | None = None  # stage 0 of several: from the last


class PipelineStage:
    """The Stage protocol over a source, a module and a sink."""

    def __init__(self, device: Device, torch_device: torch.device, source: Source, module: StageModule, sink: Sink):
        self._device = device
        self._torch_device = torch_device
        self._source = source
        self._module = module
        self._sink = sink

    def prepare(self, inputs: StepInput) -> StepWork:
        """The step's tensors on the device."""
        return StepWork(inputs, Batch.from_step(inputs, self._torch_device))

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the receives; also waits for the sink's buffer to be free."""
        return [*self._source.receive(work), *self._sink.prepare(work)]

    def compute(self, work: StepWork, after: Sequence[Event]) -> Event:
        """Enqueues the layers, then what the sink computes."""

        def run() -> None:
            with torch.inference_mode():
                work.hidden = self._module(self._source.load(work), work.batch)

        layers = self._device.enqueue("compute", run, after, cause="compute", step=work.inputs.step)
        self._source.consumed(layers)
        return self._sink.compute(work, layers)

    def send(self, work: StepWork, computed: Event) -> Event:
        """Enqueues what leaves the stage."""
        return self._sink.send(work, computed)

    def result(self, work: StepWork) -> StepResult | None:
        """The sink's answer."""
        return self._sink.result(work)


def build_stage(
    config: EngineConfig,
    model_config: ModelConfig,
    *,
    stage_idx: int,
    tp_rank: int,
    num_blocks: int,
    ports: StagePorts,
    on_result: Callable[[StepResult], None],
    on_failure: Callable[[BaseException], None],
) -> StageScheduler:
    """Loads one rank's share of the model and puts its stage together, ready for plan 0.

    `config.model` is a folder. Raises ConfigError for a partition that doesn't fit, ModelError for a damaged folder.
    """
    builder = _StageBuilder(config, model_config, stage_idx, tp_rank, num_blocks, ports)
    stage = PipelineStage(builder.device, builder.torch_device, builder.source(), builder.module, builder.sink())
    return StageScheduler(stage, builder.mirror, builder.device, on_result, on_failure, builder.timeline)


class _StageBuilder:
    """The parts of one rank, each made once."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        stage_idx: int,
        tp_rank: int,
        num_blocks: int,
        ports: StagePorts,
    ) -> None:
        self.config, self.model_config, self.ports = config, model_config, ports
        self.tp_rank = tp_rank
        self.is_first = stage_idx == 0
        self.is_last = stage_idx == config.pipeline_parallel_size - 1
        self.torch_device = torch.device("cpu")
        self.dtype: torch.dtype = getattr(torch, model_config.dtype if config.dtype == "auto" else config.dtype)
        self.timeline = Timeline(keep_spans=config.trace is not None)
        self.device: Device = CpuDevice(self.timeline, name=f"stage{stage_idx}.{tp_rank}")
        max_model_len = config.max_model_len or model_config.max_model_len
        self.mirror = Mirror(config.max_num_seqs, -(-max_model_len // config.block_size), config.block_size)
        self.future_map = FutureMap(config.max_num_seqs, self.torch_device)
        layers = partition_layers(model_config, config.pipeline_parallel_size, config.pipeline_layer_partition)
        self.module = self._module(layers[stage_idx], num_blocks)

    def _module(self, layers: range, num_blocks: int) -> StageModule:
        config, model_config, tp = self.config, self.model_config, self.ports.tensor_parallel
        module = build_stage_module(
            model_config,
            layers,
            tp,
            dtype=self.dtype,
            device=self.torch_device,
            first=self.is_first,
            last=self.is_last,
        )
        if config.load_format == "dummy":
            dummy_weights(module, model_config, config.seed)
        else:
            load_weights(module, config.model, model_config, layers, tp.rank, tp.size)
        heads = kv_heads_per_rank(model_config.num_key_value_heads, tp.size)
        cache = KVCache(
            len(layers), num_blocks, config.block_size, heads, model_config.head_dim, self.dtype, self.torch_device
        )
        module.bind_cache(cache)
        return module

    def source(self) -> Source:
        if self.is_first:
            return TokenSource(self.device, self.module, self.future_map, self.ports.token_receive)
        assert self.ports.upstream is not None
        return LinkSource(self.device, self.ports.upstream, self._link_buffers())

    def sink(self) -> Sink:
        if not self.is_last:
            assert self.ports.downstream is not None
            return LinkSink(self.device, self.ports.downstream, self._link_buffers())
        vocab_size = self.model_config.vocab_size
        return SamplerSink(
            device=self.device,
            module=self.module,
            mirror=self.mirror,
            sampler=Sampler(self.config.max_num_seqs, vocab_size, self.torch_device),
            prompt_logprobs=PromptLogprobs(vocab_size, self.torch_device),
            future_map=self.future_map if self.is_first else None,
            link=self.ports.token_send,
            answers=self.tp_rank == 0,
        )

    def _link_buffers(self) -> torch.Tensor:
        shape = (NUM_LINK_BUFFERS, self.config.max_num_batched_tokens, self.model_config.hidden_size)
        return torch.empty(shape, dtype=self.dtype, device=self.torch_device)
