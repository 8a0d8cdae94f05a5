"""A Ray cluster for a module's tests, and a model folder that costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

TINY_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """A local cluster of 16 CPUs, which this process is in; its address."""
    import ray

    ray.init(
        address="local",
        num_cpus=16,
        object_store_memory=80_000_000,
        include_dashboard=False,
        log_to_driver=False,
        namespace="penstock",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder with a config.json alone, for dummy weights and for fake stages."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    return str(Path(folder))
