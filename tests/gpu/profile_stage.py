"""Where a stage's time goes on this GPU: decodes of Qwen3-8B layers in a graph, kernel by kernel, and the head.

`python tests/gpu/profile_stage.py [LAYERS [PART ...]]`; parts are stage, chains (kernels that start early), mixed
(steps with prompts), grid (a line of JSON for `simulate_pipeline.py`: a layer's time in all kinds of steps), attention
(alone, by size of block and number of splits), products (alone, over several weights so that no cache holds them).
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_on_gpu import COMMON, MODELS  # type: ignore[import-not-found]  # beside this script
from torch import Tensor
from torch.nn import functional as F

from penstock.configs.model_config import read_model_config
from penstock.model.decoder import StageModule, build_stage_module
from penstock.model.exchange import Exchange
from penstock.model.gpu import decode_attention, fused, kernels
from penstock.model.gpu.attention import FlashKernel, find_flash_attention
from penstock.model.gpu.buckets import Buckets, PaddedShape
from penstock.model.gpu.clock import timing_event
from penstock.model.gpu.graphs import GraphLauncher
from penstock.model.gpu.trial import step_of
from penstock.model.kv_cache import KVCache
from penstock.model.layer_span import LayerSpan
from penstock.model.limits import StepLimits
from penstock.model.loader import dummy_weights
from penstock.model.sampler import largest_of
from penstock.model.tensor_parallel import NoTensorParallel
from penstock.model.work import StepWork

ROWS, LENGTH, MAX_LEN, BLOCK = (16, 64, 128, 256), 400, 4096, 16
BYTES_PER_S = 4.3e12
LIMITS = StepLimits(512, 8192, MAX_LEN, BLOCK, 4096, torch.bfloat16)


def time_ms(work: Callable[[], object], repeats: int = 40) -> float:
    """Mean time on the device, warm."""
    for _ in range(5):
        work()
    start, end = timing_event(), timing_event()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats


def build(num_layers: int, num_tokens: int = max(ROWS) * LENGTH) -> tuple[StageModule, GraphLauncher]:
    """The model's last layers with the head, and graphs over them; the cache holds so many tokens."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(COMMON | MODELS["8b"]))
        config = read_model_config(folder)
    span = LayerSpan.of(range(config.num_hidden_layers - num_layers, config.num_hidden_layers))
    module = build_stage_module(
        config, span, NoTensorParallel(), dtype=torch.bfloat16, device="cuda", first=False, last=True
    )
    dummy_weights(module, config, 0)
    blocks = num_tokens // BLOCK + LIMITS.max_num_seqs
    module.bind_cache(
        KVCache(num_layers, blocks + 1, BLOCK, config.num_key_value_heads, config.head_dim, torch.bfloat16, "cuda")
    )
    device = torch.device("cuda")
    exchange = Exchange.of(LIMITS, device, first=False, last=True)
    assert exchange.incoming is not None
    exchange.incoming.buffers.normal_()  # zeros draw less power
    return module, GraphLauncher(module, device, LIMITS, blocks, exchange)


def greedy(module: StageModule, hidden: Tensor) -> Tensor:
    """The head's work for rows that take the likeliest token."""
    return module.likeliest(hidden, largest_of(hidden.device))


def fill(launcher: GraphLauncher, rows: int) -> None:
    """A step of decodes of `LENGTH` tokens, blocks scattered; it stays in place for replays."""
    inputs = step_of([LENGTH] * rows, [1] * rows, LIMITS)
    inputs.plan.block_ids = np.random.default_rng(0).permutation(inputs.plan.block_ids)
    with torch.inference_mode():
        launcher.run(StepWork(inputs))


def print_kernels(work: Callable[[], object]) -> None:
    """Which kernels took how long."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    for each in sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)[:14]:
        print(f"  {each.self_device_time_total:8.1f} us {each.count:3} x {each.key[:80]}")


def profile_decodes(num_layers: int) -> None:
    """Replays of each number of rows: time, floor, and the kernels of one of them."""
    module, launcher = build(num_layers)
    weights = sum(195 << 20 for _ in range(num_layers)) * 2
    for rows in ROWS:
        shape = PaddedShape(rows, rows, all_decode=True)
        fill(launcher, rows)
        hidden = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)

        replay = launcher._graphs[shape].replay
        stage = time_ms(replay)
        head, full = (time_ms(partial(work, hidden)) for work in (partial(greedy, module), module.logits))
        floor = (weights + rows * LENGTH * num_layers * 4096) / BYTES_PER_S * 1e3
        print(f"{rows} rows: {num_layers} layers {stage:.3f} ms (floor {floor:.3f}), head {head:.3f}, float {full:.3f}")
        if rows in (64, 256):

            def step(hidden: Tensor = hidden, replay: Callable[[], object] = replay) -> None:
                replay()
                greedy(module, hidden)

            print_kernels(step)


def compare_chains(num_layers: int) -> None:
    """Steps of decodes with the library's products and with ours, by what starts while the kernel before still runs."""
    Buckets.shapes = lambda self: [PaddedShape(rows, rows, all_decode=True) for rows in (128, 64, 16)]  # type: ignore[method-assign]
    for max_rows, of_norms, of_attention in itertools.product((0, 128), (False, True), (False, True)):
        setattr(kernels, "most_rows", lambda *_, most=max_rows, **__: most)  # noqa: B010
        for module, whether in ((fused, of_norms), (decode_attention, of_attention)):
            setattr(module, "chained", lambda *_, whether=whether: whether)  # noqa: B010
        stage, launcher = build(num_layers)
        figures = []
        for rows in (16, 64, 128):
            shape = PaddedShape(rows, rows, all_decode=True)
            fill(launcher, rows)
            hidden = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
            head = time_ms(partial(greedy, stage, hidden))
            figures.append(f"{rows} rows {time_ms(launcher._graphs[shape].replay):.3f} ms, head {head:.3f}")
        print(f"ours to {max_rows} rows, chained {of_norms, of_attention}: {'; '.join(figures)}", flush=True)
        del stage, launcher
        torch.cuda.empty_cache()


def run_often(launcher: GraphLauncher, work: StepWork) -> None:
    """Ten steps."""
    with torch.inference_mode():
        for _ in range(10):
            launcher.run(work)


def time_mixed(num_layers: int) -> None:
    """Steps of decodes and prompts: the host's time and the device's."""
    _, launcher = build(num_layers)
    for rows, prompts in ((64, [64]), (64, [300]), (64, [440]), (64, [1024]), (0, [300] * 27)):
        work = StepWork(step_of([LENGTH] * rows + prompts, [1] * rows + prompts, LIMITS))
        device_ms = time_ms(partial(run_often, launcher, work), 2) / 10
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        run_often(launcher, work)
        host_ms = (time.perf_counter() - start_s) * 100
        torch.cuda.synchronize()
        if not rows:
            print_kernels(partial(run_often, launcher, work))
        print(f"{rows} rows and prompts {prompts[:2]}, {num_layers} layers: {device_ms:.2f} ms, host {host_ms:.2f} ms")


GRID_ROWS = (1, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 512)
GRID_LENGTHS = (150, 400, 800)
GRID_CHUNKS = (32, 64, 96, 128, 192, 256, 384, 448, 512, 640, 768, 1024, 1536, 2048)
GRID_BESIDE = (0, 16, 64, 128, 256)


def time_grid(num_layers: int) -> None:
    """Prints a layer's time in µs, and the head's, by rows, length and prompt tokens: decodes as they are padded."""
    module, launcher = build(num_layers, max(GRID_ROWS) * max(GRID_LENGTHS))

    def layer_us(rows: int, length: int, chunk: int) -> float:
        inputs = step_of([length] * rows + [chunk] * (chunk > 0), [1] * rows + [chunk] * (chunk > 0), LIMITS)
        inputs.plan.block_ids = np.random.default_rng(0).permutation(inputs.plan.block_ids)
        return time_ms(partial(run_often, launcher, StepWork(inputs)), 2) * 100 / num_layers

    decodes = {f"{rows} {length}": layer_us(rows, length, 0) for rows in GRID_ROWS for length in GRID_LENGTHS}
    mixed = {f"{rows} {chunk}": layer_us(rows, 400, chunk) for rows in GRID_BESIDE for chunk in GRID_CHUNKS}
    heads = {}
    for rows in GRID_ROWS:
        hidden = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
        heads[str(rows)] = time_ms(partial(greedy, module, hidden)) * 1e3
    tables = {"decodes": decodes, "mixed": mixed, "heads": heads}
    print(json.dumps({name: {key: round(us, 1) for key, us in table.items()} for name, table in tables.items()}))


def attend_all(kernel: FlashKernel, q: Tensor, layers: list[Tensor], options: dict[str, Any]) -> None:
    """Attention in several layers, one after the other."""
    for keys, values in layers:
        kernel(q, keys, values, **options)


def time_attention() -> None:
    """One layer's attention of decodes, blocks scattered."""
    kernel = find_flash_attention()
    assert kernel is not None
    for rows, block in itertools.product((64, 128, 256), (16, 32, 64, 128, 256)):
        width = MAX_LEN // block
        blocks = rows * (LENGTH // block + 1)
        layers = [torch.randn(2, blocks, block, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
        table = torch.zeros(rows, width, dtype=torch.int32, device="cuda")
        table[:, : LENGTH // block + 1] = torch.randperm(blocks, device="cuda").view(rows, -1).int()
        options = {
            "max_seqlen_q": 1,
            "cu_seqlens_q": torch.arange(rows + 1, dtype=torch.int32, device="cuda"),
            "max_seqlen_k": MAX_LEN,
            "seqused_k": torch.full((rows,), LENGTH, dtype=torch.int32, device="cuda"),
            "block_table": table,
            "causal": True,
        }
        q = torch.randn(rows, 32, 128, device="cuda", dtype=torch.bfloat16)
        figures = []
        for splits in (0, 1, 2):
            graph = torch.cuda.CUDAGraph()

            attend = partial(attend_all, kernel, q, layers, options | {"num_splits": splits})

            attend()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                attend()
            figures.append(f"{splits} splits {time_ms(graph.replay) * 1e3 / len(layers):.1f} us")
        floor = rows * LENGTH * 4096 / BYTES_PER_S * 1e6
        print(f"attention, {rows} rows, blocks of {block}: {', '.join(figures)}; floor {floor:.1f} us")


def plain(weights: Iterator[Tensor], x: Tensor) -> Tensor:
    """The next weight's product."""
    return F.linear(x, next(weights))


def into(weights: Iterator[Tensor], x: Tensor, residual: Tensor) -> Tensor:
    """The next weight's product, added where the residual lies."""
    return residual.addmm_(x, next(weights).t())


def time_products() -> None:
    """Products of a layer: plain, into the residual, and by the other library."""
    shapes = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}
    for name, (outputs, inputs) in shapes.items():
        turn = itertools.cycle([torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(6)])
        for rows in ROWS:
            x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
            residual = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)
            ways = {"plain": partial(plain, turn, x), "into": partial(into, turn, x, residual)}
            figures = []
            for library in ("cublas", "cublaslt"):
                torch.backends.cuda.preferred_blas_library(library)
                figures += [f"{library} {way} {time_ms(work) * 1e3:.1f}" for way, work in ways.items()]
            floor = outputs * inputs * 2 / BYTES_PER_S * 1e6
            print(f"{name} {rows}: {', '.join(figures)} us; floor {floor:.1f}")
    torch.backends.cuda.preferred_blas_library("default")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    parts = sys.argv[2:] or ["stage", "attention", "products"]
    if "stage" in parts:
        profile_decodes(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
    if "mixed" in parts:
        time_mixed(int(sys.argv[1]))
    if "grid" in parts:
        time_grid(int(sys.argv[1]))
    if "chains" in parts:
        compare_chains(int(sys.argv[1]))
    if "attention" in parts:
        time_attention()
    if "products" in parts:
        time_products()
