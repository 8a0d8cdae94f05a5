"""What grammars cost: a row's mask at two sizes of vocabulary, and the steps of plain requests beside one of them.

Run as `python -m penstock.tests.benchmarks.bench_grammar`, or by its path.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import torch

import penstock.model.demo
from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.model.grammar import Grammars, GrammarStep, NewOwner
from penstock.model.grammar_compiler import GrammarCompiler
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import Sampling, ints
from penstock.scheduler.scheduler import Scheduler

DEMO = str(Path(penstock.model.demo.__file__).parent)
SCHEMA = 'json\n{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0}}}'
BOUNDED = 'json\n{"type":"object","properties":{"name":{"type":"string","maxLength":40}},"required":["name"]}'
ENDLESS = "regex\n[0-9]*"
ROWS = 16
REPEATS = 200
RUNS = 5


def main() -> None:
    torch.set_num_threads(1)
    print("vocabulary  grammar  where                 fill + apply, us a row (16 rows)")
    with tempfile.TemporaryDirectory() as folder:
        write_large_vocabulary(folder)
        for name, compiler in (("demo 264", GrammarCompiler(DEMO, 264, [257])), ("32768", large(folder))):
            for kind, spec in (("open", SCHEMA), ("bounded", BOUNDED)):
                for where, text in (("at the start", ""), ("within a string", '{"name": "ab')):
                    print(f"{name:10s}  {kind:7s}  {where:20s}  {mask_us(compiler, spec, text):8.1f}")
    print(f"steps/s of 33 requests, best of {RUNS} runs in turn: all plain, one of them with a grammar")
    for stages in (1, 2):
        runs = [(steps_per_s(stages, beside=False), steps_per_s(stages, beside=True)) for _ in range(RUNS)]
        alone, beside = (max(column) for column in zip(*runs, strict=True))
        print(f"{stages} stages  {alone:8.1f}  {beside:8.1f}  {100 * beside / alone - 100:+.1f} %")


def large(folder: str) -> GrammarCompiler:
    return GrammarCompiler(folder, 32768, [32767])


def write_large_vocabulary(folder: str) -> None:
    """Random words in a byte-level tokenizer's letters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    rng, letters = random.Random(0), sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys(letters)
    common = 'abcdefghijklmnopqrstuvwxyz0123456789{}[]":,Ġ'
    while len(words) < 32767:
        words["".join(rng.choices(common, k=rng.randint(2, 9)))] = None
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(f"{folder}/tokenizer.json")


def mask_us(compiler: GrammarCompiler, spec: str, text: str) -> float:
    """Best microseconds of a row's mask; the first step, which makes the matchers, is left out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{compiler._folder}/tokenizer.json")
    generated = tokenizer.encode(text, add_special_tokens=False).ids
    grammars = Grammars(compiler, compiler.vocab_size, torch.device("cpu"))
    owners = [NewOwner(slot, Sampling(grammar=spec), generated) for slot in range(ROWS)]
    slots, rows, times = list(range(ROWS)), torch.arange(ROWS), []
    logits = torch.randn(ROWS, compiler.vocab_size)
    for turn in range(REPEATS):
        step = GrammarStep([], owners if not turn else [], slots, [1] * ROWS, rows)
        start = time.perf_counter()
        grammars.apply(logits, step)
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e6 / ROWS


def steps_per_s(stages: int, beside: bool) -> float:
    """33 requests of 200 tokens, all plain or one of them with a grammar."""
    config = EngineConfig(model=DEMO, pipeline_parallel_size=stages, device="cpu", max_num_seqs=64)
    model_config = read_model_config(DEMO)
    scheduler = Scheduler(scheduler_config(config, model_config, 1024))
    driver = start_in_process(config, model_config, scheduler, 1024)
    bound = Sampling(grammar=ENDLESS, min_tokens=200, stop_token_ids=(257,))
    samplings = [Sampling()] * 32 + [bound if beside else Sampling()]
    for at, sampling in enumerate(samplings):
        scheduler.add_request(NewRequest(f"r{at}", ints(range(20, 40)), 200, sampling, ignore_eos=True))
    events = driver.run()
    next(events)  # the first grammar loads its library
    start, first = time.perf_counter(), driver.num_steps
    for _ in events:
        pass
    seconds, steps = time.perf_counter() - start, driver.num_steps - first
    driver.close()
    return steps / seconds


if __name__ == "__main__":
    main()
