"""Every family's logits are transformers', however layers are cut over stages and ranks, and tokens over steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.configs.model_config import ModelConfig, read_model_config
from penstock.configs.rope_config import RopeConfig
from penstock.errors import ConfigError
from penstock.model.decoder import build_stage_module
from penstock.model.kernels import TORCH_KERNELS
from penstock.model.layer_span import LayerSpan
from penstock.model.tensor_parallel import NoTensorParallel, ThreadTensorParallel
from penstock.scheduler.plan import ints

from .stages import Pipeline, Sequences, logits_by_sequence
from .tiny import TINY_MODELS, VOCAB_SIZE, write_tiny_model

TOLERANCE = 1e-4
LENGTHS = (37, 22, 9)
SCHEDULE = [  # two prompts in chunks, then decodes beside another prompt, then decodes alone
    {0: 16, 1: 7},
    {1: 9, 0: 15},
    {0: 1, 1: 1, 2: 5},
    {2: 1, 0: 1, 1: 1},
    {0: 1, 2: 1, 1: 1},
    {1: 3, 2: 2, 0: 3},
]

torch.set_num_threads(1)


class Case:
    """A family's folder, some prompts, and transformers' logits for them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.model = write_tiny_model(folder, name)
        self.config = read_model_config(folder)
        rng = np.random.default_rng(3)
        self.prompts = [ints(rng.integers(0, VOCAB_SIZE, length)) for length in LENGTHS]
        self.expected = [reference(self.model, prompt) for prompt in self.prompts]

    def logits(self, num_stages: int = 1, tp_size: int = 1) -> list[Tensor]:
        pipeline = Pipeline(self.config, self.folder, num_stages, tp_size)
        return logits_by_sequence(pipeline, Sequences(self.prompts), SCHEDULE)

    def check(self, logits: list[Tensor]) -> None:
        for ours, theirs in zip(logits, self.expected, strict=True):
            torch.testing.assert_close(ours, theirs[: len(ours)], atol=TOLERANCE, rtol=0)
            assert torch.equal(ours.argmax(-1), theirs[: len(ours)].argmax(-1))


@torch.inference_mode()
def reference(model: Any, prompt: np.ndarray[Any, np.dtype[np.int32]]) -> Tensor:
    logits: Tensor = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0]
    return logits


@pytest.fixture(scope="module", params=list(TINY_MODELS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_logits_are_transformers_at_any_number_of_stages(case: Case, num_stages: int) -> None:
    case.check(case.logits(num_stages))


@pytest.mark.parametrize("num_stages", [1, 2])
def test_logits_are_transformers_on_two_ranks(case: Case, num_stages: int) -> None:
    case.check(case.logits(num_stages, tp_size=2))


def test_logits_are_transformers_in_plain_torch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.model.layers.make_kernels", lambda *_: TORCH_KERNELS)
    case.check(case.logits())


def test_key_value_heads_are_repeated_when_ranks_outnumber_them(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama3")  # 8 heads, 2 key/value heads
    case.check(case.logits(tp_size=4))


def test_greedy_tokens_are_those_of_generate(tmp_path: Path) -> None:
    case = Case(tmp_path, "qwen3")
    prompt = torch.from_numpy(case.prompts[0].astype(np.int64))[None]
    expected = case.model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)[0].numpy()
    pipeline, sequences = Pipeline(case.config, tmp_path, 2), Sequences([ints(expected)])
    chunk = len(case.prompts[0])
    for position in range(chunk, len(expected)):
        assert pipeline.logits(sequences.step({0: chunk}))[-1].argmax() == expected[position]
        chunk = 1


QWEN2 = ModelConfig(
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=5,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=8,
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=1e4, rotary_dim=8),
)


@pytest.mark.parametrize("halves", [(6, 6), (7, 8), (2, 12), (-2, 4)])
def test_a_stage_without_layers_or_with_others_than_the_models_is_refused(halves: tuple[int, int]) -> None:
    span = LayerSpan(*halves)
    with pytest.raises(ConfigError, match=f"0 to 5.* {span.start / 2:g} to {span.stop / 2:g}$"):
        build_stage_module(QWEN2, span, NoTensorParallel(), dtype=torch.float32, first=False, last=False)


@pytest.mark.parametrize(
    ("tp_size", "message"),
    [
        (5, "tensor_parallel_size 5 doesn't divide the model's 12 attention heads"),
        (3, "tensor_parallel_size 3 doesn't divide the model's 4 key/value heads"),
        (6, "tensor_parallel_size 6 is no multiple of the model's 4 key/value heads"),
        (12, "tensor_parallel_size 12 doesn't divide the model's 88 intermediate dimensions"),
    ],
)
def test_ranks_that_do_not_divide_the_model_are_refused_with_both_numbers(tp_size: int, message: str) -> None:
    tp = ThreadTensorParallel.group(tp_size)[0]
    with pytest.raises(ConfigError, match=message):
        build_stage_module(QWEN2, LayerSpan(2, 4), tp, dtype=torch.float32, first=False, last=False)
