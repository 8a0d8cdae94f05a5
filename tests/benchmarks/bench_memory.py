"""Host memory of each worker beyond its own shard of the weights and its cache: under 1 GB.

A model of about 400 M parameters in bf16 (random, written as safetensors shards), cut into two stages; peak memory is
the kernel's own (VmHWM), so a worker that had loaded the whole checkpoint would show it.
usage: python tests/benchmarks/bench_memory.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM

from penstock.actors.engine import start_engine
from penstock.configs.engine import EngineConfig

BUDGET_BYTES = 1 << 30
CACHE_BYTES = 64 << 20
STAGES = 2


def write_model(folder: Path) -> int:
    """Writes the model; returns the bytes of its weights."""
    config = Qwen3Config(
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=10,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=96,
        vocab_size=32768,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    model: Any = Qwen3ForCausalLM(config).bfloat16()
    model.save_pretrained(folder, max_shard_size="200MB")
    return sum(p.numel() * p.element_size() for p in model.parameters())


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had, anonymous and file pages together."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmHWM for process {pid}")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        weights = write_model(Path(name))
        config = EngineConfig(
            model=name,
            pipeline_parallel_size=STAGES,
            kv_cache_memory_bytes=CACHE_BYTES,
            max_model_len=1024,
            max_num_seqs=32,
            device="cpu",
            ray_address="local",
            num_cpus=4,
        )
        with start_engine(config) as engine:
            peaks = [peak_bytes(stage["pid"]) for stage in engine.stats()["stages"]]
    shard = weights / STAGES
    print(f"weights {weights / 1e6:.0f} MB, a shard about {shard / 1e6:.0f} MB, cache {CACHE_BYTES / 1e6:.0f} MB")
    beyond = [peak - shard - CACHE_BYTES for peak in peaks]
    for i, (peak, extra) in enumerate(zip(peaks, beyond, strict=True)):
        print(f"stage {i}: peak {peak / 1e6:.0f} MB, beyond its shard and cache {extra / 1e6:.0f} MB (budget 1074)")
    return int(max(beyond) > BUDGET_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
