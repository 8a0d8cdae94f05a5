"""`penstock bench throughput`: a workload through an engine as `LLM` runs it; tokens a second, and where time went.

The table is for people; the last line is one JSON object with the same figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...configs.sampling import SamplingParams
from ...errors import RequestError
from ...scheduler.timeline import StageTotals
from ..llm import LLM
from ..outputs import RequestOutput
from ..prompts import Prompt
from .flags import Parser, add_settings, engine_config
from .workloads import WORKLOADS, Request, make_workload

_WARM_REQUESTS, _WARM_TOKENS = 16, 32


@dataclass(slots=True)
class Figures:
    """One run's figures; times in milliseconds where the name says so."""

    workload: str
    num_requests: int
    num_at_once: int
    ready_s: float
    seconds: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    ttft_ms: list[float]  # median and 99th percentile
    tpot_ms: list[float]
    num_steps: int
    num_preemptions: int
    num_kv_tokens: int
    stages: list[dict[str, Any]]


def run(arguments: Sequence[str]) -> int:
    """The command's exit status."""
    kind, *rest = list(arguments) or ["--help"]
    if kind != "throughput":
        print("usage: penstock bench throughput [MODEL] [options]; --help lists them", file=sys.stderr)
        return 0 if kind in ("-h", "--help") else 2
    parsed = _parser().parse(rest)
    start_s = time.monotonic()
    with LLM.from_config(engine_config(parsed)) as llm:
        ready_s = time.monotonic() - start_s
        requests = make_workload(parsed.workload, parsed.num_requests, llm.limits.vocab_size)
        _warm(llm, requests)
        figures = measure(llm, parsed.workload, requests, parsed.at_once or len(requests))
        figures.ready_s = ready_s
    print(_table(figures))
    print(json.dumps(asdict(figures)))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="penstock bench throughput", description=__doc__, usage="%(prog)s [MODEL] [options]")
    what = parser.add_argument_group("workload")
    what.add_argument("--workload", choices=sorted(WORKLOADS), default="chat", help="lengths of prompts and answers")
    what.add_argument("--num-requests", type=int, default=512, metavar="N", help="requests in all (default 512)")
    what.add_argument("--at-once", type=int, metavar="N", help="requests open at a time (default all)")
    add_settings(parser)
    return parser


def measure(llm: LLM, name: str, requests: Sequence[Request], at_once: int) -> Figures:
    """Runs the requests, greedily and past any end token, and reads the engine's figures before and after."""
    before, start_s = llm.stats(), time.monotonic()
    outputs = _answers(llm, requests, at_once)
    seconds = time.monotonic() - start_s
    after = llm.stats()
    num_tokens = sum(output.num_generated_tokens for output in outputs)
    stages = [_stage(*pair) for pair in zip(before["stages"], after["stages"], strict=True)]
    return Figures(
        workload=name,
        num_requests=len(outputs),
        num_at_once=at_once,
        ready_s=0.0,
        seconds=seconds,
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        output_tokens=num_tokens,
        output_tokens_per_s=num_tokens / seconds,
        ttft_ms=_median_and_p99([output.metrics.ttft_s for output in outputs]),
        tpot_ms=_median_and_p99([output.tpot_s() for output in outputs]),
        num_steps=max((stage["steps"] for stage in stages), default=0),
        num_preemptions=after["scheduler"]["num_preemptions"] - before["scheduler"]["num_preemptions"],
        num_kv_tokens=llm.limits.cache_tokens,
        stages=stages,
    )


def _answers(llm: LLM, requests: Sequence[Request], at_once: int) -> list[RequestOutput]:
    asked: list[tuple[Prompt | RequestError, SamplingParams]] = [
        (each.prompt_token_ids, _params(each.max_tokens)) for each in requests
    ]
    outputs = [output for _, output in llm.complete(asked, at_once)]
    failed = [output.error for output in outputs if output.error is not None]
    if failed:
        print(f"penstock: {len(failed)} of {len(outputs)} requests failed: {failed[0]}", file=sys.stderr)
    return outputs


def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def _warm(llm: LLM, requests: Sequence[Request]) -> None:
    """Steps of many shapes before the clock starts."""
    few = requests[:_WARM_REQUESTS]
    _answers(llm, [Request(0.0, each.prompt_token_ids, _WARM_TOKENS) for each in few], len(few))


def _stage(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A stage's share of busy time and of each cause of idling, between the two readings."""
    names = StageTotals.__dataclass_fields__
    earlier, later = (StageTotals(**{name: each[name] for name in names if name in each}) for each in (before, after))
    spent = later.since(earlier)
    elapsed_ns = max(1, spent.last_end_ns - spent.first_start_ns)
    idle = {cause: round(ns / elapsed_ns, 4) for cause, ns in spent.wait_ns.items()}
    ms_per_step = spent.busy_ns / max(1, spent.steps) / 1e6
    return {"steps": spent.steps, "busy": round(spent.busy_share, 4), "idle": idle, "busy_ms_per_step": ms_per_step}


def _median_and_p99(seconds: Sequence[float | None]) -> list[float]:
    known = [each for each in seconds if each is not None]
    return [round(float(each) * 1000, 2) for each in np.percentile(known, (50, 99))] if known else []


def _table(figures: Figures) -> str:
    rows = {
        "workload": f"{figures.workload}, {figures.num_requests} requests, {figures.num_at_once} at once",
        "ready after": f"{figures.ready_s:.1f} s",
        "output tokens/s": f"{figures.output_tokens_per_s:.0f} ({figures.output_tokens} in {figures.seconds:.2f} s)",
        "TTFT, TPOT": f"{figures.ttft_ms} ms, {figures.tpot_ms} ms (median, p99)",
        "steps": f"{figures.num_steps}, {figures.num_preemptions} preemptions, cache of {figures.num_kv_tokens} tokens",
    }
    for index, stage in enumerate(figures.stages):
        idle = ", ".join(f"{cause} {share:.1%}" for cause, share in stage["idle"].items() if share > 0.0005)
        busy = f"{stage['busy']:.1%} busy, {stage['busy_ms_per_step']:.2f} ms a step"
        rows[f"stage {index}"] = f"{busy}; idle: {idle or 'never'}"
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())
