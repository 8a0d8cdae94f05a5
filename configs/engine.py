"""An engine's settings, with the words that vLLM's users know; the README's table is made from these descriptions.

Frozen and complete: what is None here is chosen later from the model, the cluster or the device, as described. A wrong
value or an unknown name raises `ConfigError` with the value and the limit.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError
from .problems import explain

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class EngineConfig(BaseModel):
    """Everything that may be said about an engine before it starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field("demo", description="a model folder, or a preset's name", min_length=1)
    tokenizer: str | None = Field(None, description="a folder with the tokenizer's files; None: the model's folder")
    skip_tokenizer_init: bool = Field(False, description="take and give token ids only; no tokenizer is loaded")
    load_format: Literal["auto", "dummy"] = Field(
        "auto", description="`auto` reads safetensors, `dummy` makes random weights from a config.json alone"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of weights and activations; `auto` is the checkpoint's"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` is CUDA where there is a GPU, else the CPU"
    )
    seed: int = Field(0, description="random weights (`load_format` `dummy`) draw from it", ge=0, lt=1 << 63)

    pipeline_parallel_size: int = Field(1, description="stages, each with a share of the layers", ge=1, le=64)
    tensor_parallel_size: int = Field(1, description="ranks that share each layer of a stage", ge=1, le=64)
    pipeline_layer_partition: list[float] | None = Field(
        None, description="layers of each stage, halves too, for example [5, 4.5, 2.5]; None: balanced by cost"
    )

    max_model_len: int | None = Field(
        None, description="most tokens of a sequence, prompt and output; None: what the model's config says", ge=1
    )
    max_num_seqs: int = Field(256, description="sequences that run at once", ge=1, le=65536)
    max_num_batched_tokens: int = Field(
        2048, description="most tokens of one step; may be below max_num_seqs", ge=1, le=1 << 20
    )
    block_size: int = Field(16, description="tokens in a block of the KV cache", ge=1, le=1024)
    num_kv_blocks: int | None = Field(
        None, description="blocks of the KV cache, the same on every stage; None: what memory allows", ge=1
    )
    kv_cache_memory_bytes: int | None = Field(
        None, description="bytes of KV cache of each rank, instead of num_kv_blocks", ge=1
    )
    gpu_memory_utilization: float = Field(
        0.9, description="share of a GPU's memory that weights and cache may take together", gt=0, le=1
    )
    enable_prefix_caching: bool = Field(True, description="share the cache of equal beginnings of prompts")

    async_scheduling: bool = Field(
        True, description="plan steps before earlier ones have returned; False, for comparison, waits for each"
    )
    scheduling_policy: Literal["auto", "token_throttling", "fill"] = Field(
        "auto", description="how prompts share steps with decodes; `auto` is `fill` with one stage, else throttling"
    )
    max_unretired_plans: int | None = Field(
        None, description="plans in flight: 2 with one stage, stages + 1 (the default) or stages + 2 with more"
    )
    throttle_steps: int = Field(8, description="steps over which throttling spreads waiting prompt tokens", ge=1)
    min_prefill_tokens: int | None = Field(
        None,
        description="throttling's lower bound of prompt tokens in a step; None: 32 on a CPU, 128 on GPUs, "
        "fewer with more than two stages",
        ge=1,
    )
    max_prefill_tokens: int = Field(2048, description="throttling's upper bound of prompt tokens in a step", ge=1)
    max_decode_slowdown: float = Field(
        3.0, description="throttling on GPUs: a step's cost, with its prompts, over that of its decodes alone", ge=1
    )
    enforce_eager: bool = Field(False, description="never capture or compile what the device runs")

    name: str | None = Field(
        None, description="the engine's name in the cluster; None: one is made up", pattern=NAME_PATTERN
    )
    detached: bool = Field(False, description="the engine outlives the process that started it, in a cluster that does")
    ray_address: str | None = Field(
        None, description="a cluster to join (`auto`: one on this machine); None: RAY_ADDRESS, else a new one"
    )
    num_cpus: int | None = Field(None, description="CPUs that a new cluster offers; None: this machine's", ge=1)
    num_threads: int | None = Field(
        None, description="CPU threads of one rank; None: this machine's cores shared among its ranks", ge=1
    )
    transport: Literal["auto", "ipc", "tcp"] = Field(
        "auto", description="sockets for plans and events: `ipc` on one node, `tcp` (encrypted) across nodes"
    )

    trace: str | None = Field(
        None, description="write the run's timeline to this file, as a Chrome trace; a server adds its name"
    )
    record: str | None = Field(
        None, description="record the scheduler's inputs and plans for `penstock replay`; a server adds its name"
    )
    result_delay_ms: float = Field(
        0.0,
        description="delay added to every result on its way to the scheduler, to measure asynchrony",
        ge=0,
        le=60000,
    )
    heartbeat_interval_s: float = Field(0.25, description="seconds between a stage's heartbeats", gt=0, le=60)
    stage_timeout_s: float = Field(
        3.0, description="seconds without a heartbeat after which a stage counts as lost", gt=0, le=3600
    )
    step_timeout_s: float = Field(
        60.0, description="seconds on one step after which a stage that still beats counts as hung", gt=0, le=3600
    )

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields)) from None

    @model_validator(mode="after")
    def _settings_agree(self) -> EngineConfig:
        for problem in (self._partition_problem(), self._plans_problem(), self._limits_problem()):
            if problem:
                raise ValueError(problem)
        return self

    def _partition_problem(self) -> str | None:
        partition, stages = self.pipeline_layer_partition, self.pipeline_parallel_size
        if partition is None:
            return None
        named = f"pipeline_layer_partition {shown_partition(partition)}"
        if len(partition) != stages:
            return f"{named} names {len(partition)} stages, but pipeline_parallel_size is {stages}"
        if min(partition) < 1:
            return f"{named} leaves a stage without layers; each needs at least 1"
        if any(2 * count % 1 for count in partition):
            return f"{named} cuts a layer elsewhere than into halves, attention and MLP"
        return None

    def _plans_problem(self) -> str | None:
        stages, plans = self.pipeline_parallel_size, self.max_unretired_plans
        allowed = (2,) if stages == 1 else (stages + 1, stages + 2)
        if plans is None or plans in allowed:
            return None
        return (
            f"max_unretired_plans is {plans}: with pipeline_parallel_size {stages} "
            f"it must be {' or '.join(map(str, allowed))}"
        )

    def _limits_problem(self) -> str | None:
        if self.num_kv_blocks is not None and self.kv_cache_memory_bytes is not None:
            return (
                f"num_kv_blocks ({self.num_kv_blocks}) and kv_cache_memory_bytes ({self.kv_cache_memory_bytes}) "
                "both fix the cache; give one of them"
            )
        if self.min_prefill_tokens is not None and self.min_prefill_tokens > self.max_prefill_tokens:
            return f"min_prefill_tokens {self.min_prefill_tokens} is above max_prefill_tokens {self.max_prefill_tokens}"
        if self.stage_timeout_s < 2 * self.heartbeat_interval_s:
            return (
                f"stage_timeout_s {self.stage_timeout_s} is below two heartbeats "
                f"(heartbeat_interval_s {self.heartbeat_interval_s})"
            )
        if self.trace is not None and self.trace == self.record:
            return f"trace and record are both {self.trace!r}: one would write over the other"
        return None

    @property
    def unretired_plans(self) -> int:
        """`max_unretired_plans` with its default filled in."""
        if self.max_unretired_plans is not None:
            return self.max_unretired_plans
        return 2 if self.pipeline_parallel_size == 1 else self.pipeline_parallel_size + 1

    @property
    def least_prefill_tokens(self) -> int:
        """`min_prefill_tokens` with its default filled in, for the device that was chosen.

        A GPU reads its weights for so many tokens at nearly the price of one: fewer would make a prompt wait for
        several steps and save the decodes little. More stages take shorter steps, of smaller cohorts, one after the
        other: what a prompt adds to one of them is a bubble in the others (LOG.md).
        """
        if self.min_prefill_tokens is not None:
            return self.min_prefill_tokens
        least = min(128, max(32, 256 // self.pipeline_parallel_size)) if self.device == "cuda" else 32
        return min(least, self.max_prefill_tokens)

    @property
    def policy(self) -> Literal["token_throttling", "fill"]:
        """`scheduling_policy` with `auto` resolved."""
        if self.scheduling_policy != "auto":
            return self.scheduling_policy
        return "fill" if self.pipeline_parallel_size == 1 else "token_throttling"

    @property
    def world_size(self) -> int:
        """Ranks of the whole engine."""
        return self.pipeline_parallel_size * self.tensor_parallel_size

    @property
    def tokenizer_path(self) -> str:
        """The folder that the client reads its tokenizer from."""
        return self.tokenizer or self.model


def shown_partition(partition: list[float]) -> str:
    """As a user writes it."""
    return f"[{', '.join(f'{count:g}' for count in partition)}]"
