"""Products of few rows against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.model.gpu.products import MAX_ROWS, product, serves

pytestmark = pytest.mark.gpu

SHAPES = [(4096, 4096), (6144, 1024), (208, 1000), (16, 64), (5120, 8192)]  # outputs, inputs


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def hopper() -> None:
    if not serves(some(16, 64)):
        pytest.skip("for Hopper, with a compiler")


@pytest.mark.parametrize("rows", [1, 7, 64, 65, 128, 129, 160, 200, 255, MAX_ROWS])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products_are_those_of_float32(rows: int, outputs: int, inputs: int) -> None:
    x, weight, residual = some(rows, inputs), some(outputs, inputs) / inputs**0.5, some(rows, outputs)
    exact = x.float() @ weight.float().T
    assert error(product(x, weight), exact) < 0.003
    before, where = residual.float(), residual.data_ptr()
    added = product(x, weight, residual)
    assert added.data_ptr() == where
    assert error(added, before + exact) < 0.003


@pytest.mark.parametrize("rows", [1, 64, 128, 150, MAX_ROWS])
@pytest.mark.parametrize(("outputs", "inputs"), [(12288, 4096), (208, 1000), (24, 64)])
def test_a_gate_is_applied_behind_its_product(rows: int, outputs: int, inputs: int) -> None:
    x, weight = some(rows, inputs), some(2 * outputs, inputs) / inputs**0.5
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=-1)
    assert error(product(x, weight, gated=True), F.silu(gate) * up) < 0.01


@pytest.mark.parametrize("counts", [(3, 16, 40, 64), (70, 100, 128), (130, 150, 160), (230, 256)])
def test_a_rows_sum_does_not_depend_on_the_others(counts: tuple[int, ...]) -> None:
    x, weight = some(MAX_ROWS, 4096), some(6144, 4096) / 64
    alone = [product(x[:count], weight)[:3] for count in counts]
    assert all(torch.equal(each, alone[0]) for each in alone)


def test_products_follow_one_another_without_a_pause() -> None:
    """Each starts while the one before runs, in a graph as outside."""
    hidden, weights = some(48, 1024), [some(1024, 1024) / 32 for _ in range(24)]
    expected = hidden.clone()
    for weight in weights:
        expected = (
            expected.float() + F.rms_norm(expected.float(), (1024,)).bfloat16().float() @ weight.float().T
        ).bfloat16()

    def run(x: Tensor) -> Tensor:
        for weight in weights:
            x = product(F.rms_norm(x, (1024,)), weight, x)
        return x

    outside = run(hidden.clone())
    graph, inside = torch.cuda.CUDAGraph(), hidden.clone()
    with torch.cuda.graph(graph):
        found = run(inside)
    inside.copy_(hidden)
    graph.replay()
    assert torch.equal(found, outside)
    assert error(found, expected.float()) < 0.02
