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
from .decoder import StageModule, build_stage_module
from .exchange import Exchange
from .gpu.measure import Measured, device_figures
from .grammar_compiler import GrammarCompiler
from .kv_cache import KVCache
from .launch import DirectLauncher, Launcher
from .layer_span import LayerSpan
from .limits import StepLimits
from .loader import dummy_weights, load_weights
from .logprobs import PromptLogprobs
from .partition import partition_for
from .sampler import Sampler
from .sinks import LinkSink, SamplerSink, Sink
from .sources import LinkSource, NoSource, Source, TokenSource
from .tensor_parallel import TensorParallel, kv_heads_per_rank
from .work import StepWork


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

    def __init__(self, device: Device, source: Source, launcher: Launcher, sink: Sink):
        self._device = device
        self._source = source
        self._launcher = launcher
        self._sink = sink

    def prepare(self, inputs: StepInput) -> StepWork:
        """The step's tensors on the host."""
        work = StepWork(inputs)
        self._launcher.prepare(work)
        return work

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the receives; also waits for the sink's buffer to be free."""
        return [*self._source.receive(work), *self._sink.prepare(work)]

    def compute(self, work: StepWork, after: Sequence[Event]) -> Event:
        """Enqueues the layers and what the sink computes."""

        def run() -> None:
            with torch.inference_mode():
                self._launcher.run(work)
                self._sink.compute(work)

        computed = self._device.enqueue("compute", run, after, cause="compute", step=work.inputs.step)
        self._source.consumed(work, computed)
        return computed

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
    agree_on_blocks: Callable[[int], int] | None = None,
    on_measured: Callable[[Measured], None] | None = None,
    grammars: GrammarCompiler | None = None,
) -> StageScheduler:
    """Loads one rank's share of the model and puts its stage together, ready for plan 0.

    `config.model` is a folder. With `num_blocks` 0 the rank measures how many blocks its memory holds, and
    `agree_on_blocks` answers with the number that all ranks take. `on_measured` is told how fast a GPU
    and its steps are. The last stage compiles grammars that nobody has compiled beforehand in `grammars`. Raises
    ConfigError for a partition or a device that doesn't fit, ModelError for a damaged folder.
    """
    builder = _StageBuilder(config, model_config, stage_idx, tp_rank, ports)
    builder.add_sampler(grammars or GrammarCompiler.of(config, model_config))
    launcher = builder.launcher(num_blocks, agree_on_blocks)
    if builder.measured is not None and on_measured is not None:
        on_measured(builder.measured)
    stage = PipelineStage(builder.device, builder.source(), launcher, builder.sink(launcher))
    return StageScheduler(stage, builder.mirror, builder.device, on_result, on_failure, builder.timeline)


def stage_dtype(config: EngineConfig, model_config: ModelConfig) -> torch.dtype:
    """Of weights, hidden states and cache."""
    dtype: torch.dtype = getattr(torch, model_config.dtype if config.dtype == "auto" else config.dtype)
    return dtype


def check_device(config: EngineConfig, model_config: ModelConfig) -> None:
    """Raises ConfigError where this process has no device that serves the engine."""
    if config.device == "cuda":
        from .gpu.device import check_cuda

        check_cuda(stage_dtype(config, model_config), config.block_size)


def make_device(config: EngineConfig, timeline: Timeline, name: str) -> tuple[Device, torch.device]:
    """What the lanes run on, and where the tensors are."""
    if config.device != "cuda":
        return CpuDevice(timeline, name), torch.device("cpu")
    from .gpu.device import CudaDevice

    return CudaDevice(timeline), torch.device("cuda", torch.cuda.current_device())


class _StageBuilder:
    """The parts of one rank, each made once."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        stage_idx: int,
        tp_rank: int,
        ports: StagePorts,
    ) -> None:
        self.config, self.model_config, self.ports = config, model_config, ports
        self.tp_rank = tp_rank
        self.is_first = stage_idx == 0
        self.is_last = stage_idx == config.pipeline_parallel_size - 1
        check_device(config, model_config)
        self.dtype = stage_dtype(config, model_config)
        self.timeline = Timeline(keep_spans=config.trace is not None)
        self.device, self.torch_device = make_device(config, self.timeline, name=f"stage{stage_idx}.{tp_rank}")
        self.limits = StepLimits(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.max_model_len or model_config.max_model_len,
            config.block_size,
            model_config.hidden_size,
            self.dtype,
        )
        self.mirror = Mirror(
            config.max_num_seqs, self.limits.max_blocks_per_seq, config.block_size, config.unretired_plans
        )
        self.exchange = Exchange.of(
            self.limits,
            self.torch_device,
            first=self.is_first,
            last=self.is_last,
            max_unretired=config.unretired_plans,
        )
        self.module = self._module(partition_for(config, model_config)[stage_idx])
        self.sampler: Sampler | None = None
        self.measured: Measured | None = None

    def add_sampler(self, grammars: GrammarCompiler) -> None:
        """Where the stage has one."""
        if self.is_last:
            num_slots, vocab_size = self.config.max_num_seqs, self.model_config.vocab_size
            self.sampler = Sampler(num_slots, vocab_size, self.torch_device, grammars)

    def _module(self, span: LayerSpan) -> StageModule:
        config, model_config, tp = self.config, self.model_config, self.ports.tensor_parallel
        module = build_stage_module(
            model_config,
            span,
            tp,
            dtype=self.dtype,
            device=self.torch_device,
            first=self.is_first,
            last=self.is_last,
        )
        if config.load_format == "dummy":
            dummy_weights(module, model_config, config.seed)
        else:
            load_weights(module, config.model, model_config, span, tp.rank, tp.size)
        return module

    def launcher(self, num_blocks: int, agree: Callable[[int], int] | None) -> Launcher:
        """The way into the layers, with the cache in place and everything warmed."""
        if self.torch_device.type == "cuda":
            return self._measuring_launcher(num_blocks, agree)
        self.module.bind_cache(self._cache(num_blocks))
        return DirectLauncher(self.module, self.exchange)

    def _measuring_launcher(self, num_blocks: int, agree: Callable[[int], int] | None) -> Launcher:
        from .gpu.device import CudaDevice
        from .gpu.trial import measure_cost
        from .gpu.warmup import blocks_in_memory, make_launcher, run_largest_step

        assert isinstance(self.device, CudaDevice)
        speed = device_figures(self.dtype)
        with self.device.computing():
            fitting = blocks_in_memory(self.module, self.sampler, self.limits, self.config, self._cache)
            if not num_blocks:
                assert agree is not None, "somebody must decide on the number of blocks"
                num_blocks = agree(fitting)
            self.module.bind_cache(self._cache(num_blocks + 1))  # the last one is for the rows that pad a step
            launcher = make_launcher(self.module, self.limits, num_blocks, self.exchange, self.config.enforce_eager)
            run_largest_step(self.module, self.sampler, self.limits, num_blocks)
            self.measured = Measured(speed, measure_cost(self.module, launcher, self.limits, num_blocks))
        return launcher

    def _cache(self, num_blocks: int) -> KVCache:
        model_config = self.model_config
        heads = kv_heads_per_rank(model_config.num_key_value_heads, self.ports.tensor_parallel.size)
        return KVCache(
            len(self.module.attentions),
            num_blocks,
            self.config.block_size,
            heads,
            model_config.head_dim,
            self.dtype,
            self.torch_device,
        )

    def source(self) -> Source:
        ports, exchange = self.ports, self.exchange
        if exchange.incoming is not None:
            assert ports.upstream is not None
            return LinkSource(self.device, ports.upstream, exchange.incoming)
        if exchange.returned is not None:
            assert ports.token_receive is not None
            return TokenSource(self.device, ports.token_receive, exchange.returned)
        return NoSource()

    def sink(self, launcher: Launcher) -> Sink:
        if self.exchange.outgoing is not None:
            assert self.ports.downstream is not None
            return LinkSink(self.device, self.ports.downstream, self.exchange.outgoing)
        assert self.sampler is not None
        return SamplerSink(
            device=self.device,
            module=self.module,
            launcher=launcher,
            mirror=self.mirror,
            sampler=self.sampler,
            prompt_logprobs=PromptLogprobs(self.model_config.vocab_size, self.torch_device),
            exchange=self.exchange,
            link=self.ports.token_send,
            answers=self.tp_rank == 0,
        )
