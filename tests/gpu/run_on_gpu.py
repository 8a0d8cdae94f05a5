"""Checks and times the engine on this machine's GPUs: `python tests/gpu/run_on_gpu.py OUTDIR [PART ...]`.

Parts are tests, and a model with a number of stages, perhaps of several ranks: 8b-1, 8b-2, 8b-4, 8b-2x2, 32b-4, all of
its workloads or those that follow behind a colon (8b-1:chat,decode+trace); without any, what the GPUs at hand allow.
Each part's output goes to a file of its own in OUTDIR; a part that fails doesn't stop the others. The last lines sum
up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch

COMMON = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
}
MODELS = {
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
    "32b": {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64},
}
WORKLOADS = {
    "chat": ["chat", "--num-requests", "512"],
    "decode": ["decode", "--num-requests", "256"],
    "chat64": ["chat", "--num-requests", "256", "--at-once", "64"],
    "decode1024": ["decode", "--num-requests", "1024", "--max-num-seqs", "1024"],
    "rate40": ["chat", "--num-requests", "400", "--request-rate", "40"],
}
LIMITS_S = {"tests": 200, "bench": 130}
HANG_S = 75  # of one test


def run(out: Path, name: str, command: list[str], limit_s: float) -> str:
    """Runs the command; its last line, or how it failed."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start, log = time.monotonic(), out / f"{name}.log"
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    lines = log.read_text(errors="replace").strip().splitlines()
    print("\n".join(lines[-40 if status else -14 :]), flush=True)
    last = lines[-1] if lines else ""
    return f"{name}: {'ok' if status == 0 else f'status {status}'} in {time.monotonic() - start:.0f} s: {last}"


def bench(out: Path, model: str, sizes: str, name: str, arguments: list[str]) -> str:
    """One workload of `penstock bench throughput`."""
    folder = out / model
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(COMMON | MODELS[model]))
    kind = "serve-sim" if "--request-rate" in arguments else "throughput"
    command = [sys.executable, "-m", "penstock", "bench", kind, str(folder), "--load-format", "dummy"]
    command += ["--skip-tokenizer-init", "--device", "cuda", "--max-model-len", "4096", "--no-enable-prefix-caching"]
    stages, _, ranks = sizes.partition("x")
    command += ["--pipeline-parallel-size", stages, "--tensor-parallel-size", ranks or "1"]
    if "--max-num-seqs" not in arguments:
        command += ["--max-num-seqs", "512"]
    command += ["--max-num-batched-tokens", "8192" if stages == "1" else "2048", "--workload", *arguments]
    return run(out, f"{model}-{sizes}-{name.replace('+', '-')}", command, LIMITS_S["bench"])


def check(out: Path) -> list[str]:
    """All tests: the one that fills the memory, then the others side by side."""

    def pytest(name: str, *which: str) -> str:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-s", "--durations=8", *which]
        if find_spec("pytest_timeout"):
            command.append(f"--timeout={HANG_S}")
        return run(out, name, command, LIMITS_S["tests"])

    alone, engines, soak = (f"tests/gpu/test_{name}.py" for name in ("burst", "engines", "soak"))
    others = ["tests/gpu", "tests/model/test_sampler_gpu.py", *(f"--ignore={name}" for name in (alone, engines, soak))]
    start = time.monotonic()
    summary = [pytest("tests-burst", alone)]
    with ThreadPoolExecutor() as pool:
        beside = [
            pool.submit(pytest, "tests-engines", engines, "-k", "not four_ranks"),
            pool.submit(pytest, "tests-four-ranks", engines, "-k", "four_ranks"),
            pool.submit(pytest, "tests-soak", soak),
        ]
        summary += [pytest("tests-in-process", *others), *(each.result() for each in beside)]
    return [*summary, f"tests: {time.monotonic() - start:.0f} s in all"]


def main() -> None:
    out, count = Path(sys.argv[1]).absolute(), torch.cuda.device_count()
    parts = sys.argv[2:] or ["tests", "8b-1", *(f"8b-{n}" for n in (2, 4) if n <= count)]
    out.mkdir(parents=True, exist_ok=True)
    summary = [f"torch {torch.__version__}, {count} x {torch.cuda.get_device_name()}"]
    for part in parts:
        if part == "tests":
            summary += check(out)
            continue
        sized, _, asked = part.partition(":")
        model, sizes = sized.split("-")
        runs = dict(WORKLOADS)
        if not sizes.startswith("1"):
            runs["decode-sync"] = [*WORKLOADS["decode"], "--no-async-scheduling"]
        for name in asked.split(",") if asked else runs:
            plain, _, traced = name.partition("+")
            arguments = [*runs[plain], "--trace", str(out / f"{sized}-{plain}.json")] if traced else runs[plain]
            summary.append(bench(out, model, sizes, name, arguments))
    print("\n".join(["", *summary]))
    (out / "summary.txt").write_text("\n".join(summary) + "\n")


if __name__ == "__main__":
    main()
