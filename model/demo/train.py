"""Train the demo model from nothing on questions that it makes up itself.

    python -m penstock.model.demo.train --out DIR --minutes 5 --device cuda

Five minutes on one H200 are enough.  The learning rate follows the clock, not
a step count, so any machine and any number of minutes give a finished model.
Worker processes write fresh rows for every step: no question is drawn from a
fixed pool, and no held-out question is ever among them (`questions.held_out`).
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM

from penstock.model.demo.evaluate import Model, Report, evaluate
from penstock.model.demo.rows import LEARN, make_batch
from penstock.model.demo.tokens import (
    END,
    PAD,
    VOCABULARY,
    build_tokenizer,
    tokenizer_config,
)

LONGEST = 512
# Short rows start questions afresh often; long ones teach every position.
WIDTHS = (128, 128, LONGEST)
IGNORED = -100


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    out: Path
    minutes: float
    device: str
    tokens: int
    rate: float
    workers: int
    seed: int
    per_kind: int


class Rows(IterableDataset[Tensor]):
    """Endless batches, `tokens` tokens each; every worker has its own seed."""

    def __init__(self, tokens: int, seed: int) -> None:
        self.tokens = tokens
        self.seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        rng = Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            for width in WIDTHS:
                rows = make_batch(rng, max(1, self.tokens // width), width)
                yield torch.from_numpy(rows)


def config() -> Qwen3Config:
    """Return the architecture: Qwen3 with grouped heads and tied embeddings."""
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LONGEST,
        initializer_range=0.04,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )


def loss_of(model: Model, rows: Tensor) -> Tensor:
    """Return the mean loss over the tokens that are to be learnt."""
    ids = (rows & (LEARN - 1)).long()
    wanted = torch.where((rows & LEARN) != 0, ids, IGNORED)[:, 1:]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def rate_at(done: float, peak: float) -> float:
    """Return the learning rate after a share `done` of the time: cosine to zero."""
    if done < 0.02:
        return peak * (done + 0.0005) / 0.0205
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimizer_for(model: Model, cuda: bool) -> torch.optim.AdamW:
    """Decay matrices only: norms have no reason to shrink."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=cuda)


def train(options: Options) -> tuple[Model, Report]:
    """Train for the given minutes, compiling left out, and return the model."""
    cuda = options.device.startswith("cuda")
    stream = iter(
        DataLoader(
            Rows(options.tokens, options.seed),
            batch_size=None,
            num_workers=options.workers,
            prefetch_factor=6 if options.workers else None,
            pin_memory=cuda,
        )
    )
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    model: Model = Qwen3ForCausalLM(config())
    model.to(options.device)
    if cuda:  # layer by layer: one small graph, compiled once for each width
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    optimizer = optimizer_for(model, cuda)

    def backward(rows: Tensor) -> Tensor:
        with torch.autocast(options.device.split(":")[0], dtype=torch.bfloat16):
            loss = loss_of(model, rows.to(options.device, non_blocking=True))
        torch.autograd.backward(loss)
        return loss.detach()

    for _ in WIDTHS:  # compiles; the clock starts afterwards
        backward(next(stream)).item()
        optimizer.zero_grad()

    step, total, started = 0, options.minutes * 60, time.monotonic()
    while (spent := time.monotonic() - started) < total:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(spent / total, options.rate)
        loss = backward(next(stream))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step in (20, 100) or step % 500 == 0:
            pace = step / (time.monotonic() - started)
            print(
                f"{spent:6.1f} s  step {step:6d}  {pace:6.1f} steps/s  loss {loss.item():.5f}",
                flush=True,
            )
        elif step % 10 == 0:
            loss.item()  # keeps the clock honest: no queue of unfinished steps
    figures = {"steps": step, "tokens": step * options.tokens}
    return model, {"parameters": model.num_parameters(), **figures}


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save(model: Model, folder: Path) -> None:
    """Write a Qwen3 folder: weights rounded to bf16, tied head left out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    usual = PreTrainedConfig().to_dict()  # what every model has says nothing of this one
    written = {name: value for name, value in model.config.to_dict().items() if usual.get(name, ...) != value}
    written.pop("_name_or_path", None)
    written |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16"}
    written |= {"torch_dtype": "bfloat16", "rope_theta": 10000.0}  # the names that older readers know
    _write(folder / "config.json", written)
    generation = {"eos_token_id": END, "pad_token_id": PAD, "do_sample": False}
    _write(folder / "generation_config.json", generation)
    _write(folder / "tokenizer_config.json", tokenizer_config(LONGEST))
    build_tokenizer().save(str(folder / "tokenizer.json"))


def read_options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    parser.add_argument("--workers", type=int, default=workers)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-kind", type=int, default=300, help="questions checked")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Train, save, read the folder back and check it."""
    options = read_options()
    model, figures = train(options)
    save(model, options.out)
    checked, wrong = evaluate(options.out, options.device, options.per_kind)
    _write(options.out / "eval.json", {**figures, "minutes": options.minutes, **checked})
    print(json.dumps(checked, indent=1))
    for text, answer, given in wrong[:60]:
        print(f"{text!r}: {given!r}, not {answer!r}")


if __name__ == "__main__":
    main()
