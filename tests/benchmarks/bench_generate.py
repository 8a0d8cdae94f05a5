"""Penstock beside transformers' `generate` on this machine's CPU: the 110 M Qwen3 shape in bf16, random weights.

128 tokens in, 128 out, greedy. Runs are interleaved (Penstock, transformers, Penstock, ...), medians reported; the
goals are ratios within one run: 1.3 with 16 requests, 1.1 with one, and two stages at 0.9 of one with 64 requests.
usage: python tests/benchmarks/bench_generate.py [--runs 5] [--quick | --stages-only] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from penstock import LLM, SamplingParams

TOKENS_IN = TOKENS_OUT = 128
GOALS = {"16 requests": 1.3, "1 request": 1.1, "2 stages, 64 requests": 0.9}


def write_model(folder: Path) -> None:
    """The 110 M shape of the goals, with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=8192,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        dtype="bfloat16",
    )
    model: Any = Qwen3ForCausalLM(config)
    model.bfloat16().save_pretrained(folder)


def prompts(num: int) -> list[list[int]]:
    """Random prompts, the same for both sides, different in every call."""
    return torch.randint(10, 8000, (num, TOKENS_IN)).tolist()


def penstock_run(llm: LLM, num: int) -> Callable[[], float]:
    params = SamplingParams(temperature=0, max_tokens=TOKENS_OUT, ignore_eos=True, detokenize=False)

    def run() -> float:
        batch = prompts(num)
        start = time.perf_counter()
        outputs = llm.generate(batch, params, use_tqdm=False)
        elapsed = time.perf_counter() - start
        assert all(len(out.outputs[0].token_ids) == TOKENS_OUT for out in outputs)
        return num * TOKENS_OUT / elapsed

    return run


def transformers_run(folder: Path, num: int) -> Callable[[], float]:
    model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.eval()

    def run() -> float:
        batch = torch.tensor(prompts(num))
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(batch, min_new_tokens=TOKENS_OUT, max_new_tokens=TOKENS_OUT, do_sample=False, pad_token_id=0)
        return num * TOKENS_OUT / (time.perf_counter() - start)

    return run


def interleaved(ours: Callable[[], float], theirs: Callable[[], float], runs: int) -> tuple[float, float]:
    """Medians of `runs` runs of each, in turn, after one warm run of each."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def engine(folder: Path, stages: int) -> LLM:
    return LLM(
        model=str(folder),
        pipeline_parallel_size=stages,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=512,
        num_kv_blocks=64 * 32,
        device="cpu",
        num_cpus=4,  # logical ones, for two engines side by side of which one at a time works
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only 16 requests, 2 runs")
    parser.add_argument("--stages-only", action="store_true", help="only two stages beside one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(1)
    rows: dict[str, tuple[float, float]] = {}
    print(f"{'case':<24}{'ours tok/s':>12}{'other tok/s':>12}{'ratio':>8}{'goal':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        runs = 2 if args.quick else args.runs
        with engine(folder, 1) as one:
            for num in () if args.stages_only else (16,) if args.quick else (16, 1):
                label = f"{num} request{'s' * (num > 1)}"
                rows[label] = interleaved(penstock_run(one, num), transformers_run(folder, num), runs)
                show(label, *rows[label])
            if not args.quick:
                with engine(folder, 2) as two:
                    for num in (64, 16):
                        label = f"2 stages, {num} requests"
                        rows[label] = interleaved(penstock_run(two, num), penstock_run(one, num), runs)
                        show(label, *rows[label])
    if args.json:
        args.json.write_text(json.dumps({k: {"ours": a, "other": b, "ratio": a / b} for k, (a, b) in rows.items()}))
    return int(any(ours / theirs < GOALS.get(label, 0) for label, (ours, theirs) in rows.items()))


def show(label: str, ours: float, theirs: float) -> None:
    """One row of the table, as soon as it is measured."""
    print(f"{label:<24}{ours:>12.1f}{theirs:>12.1f}{ours / theirs:>8.2f}{GOALS.get(label, ''):>8}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
