"""`penstock bench throughput` and `bench serve-sim`: a workload through an engine in this process's cluster.

`throughput` keeps so many requests open, as `LLM` does; with `serve-sim` they come at their own times, as clients'
requests do. Tokens a second beside the bound of stages that never idle, latencies, and where each stage's time went.
The tables are for people; the last line is one JSON object with the same figures.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...configs.model_config import read_model_config
from ...configs.sampling import RequestOutputKind, SamplingParams
from ...errors import RequestError
from ...scheduler.timeline import StageTotals
from ..async_engine import AsyncEngine
from ..llm import LLM, connect
from ..outputs import RequestMetrics, RequestOutput
from ..prompts import Prompt
from ..stage_table import stage_table
from .bound import bound_of
from .flags import Parser, add_settings, count, engine_config
from .workloads import WORKLOADS, Request, make_workload

_KINDS = ("throughput", "serve-sim")
_WARM_REQUESTS, _WARM_TOKENS = 16, 32


@dataclass(slots=True)
class Figures:
    """One run's figures; times in milliseconds where the name says so."""

    workload: str
    num_requests: int
    num_at_once: int  # at most
    requests_per_s: float | None  # None: as fast as others end
    ready_s: float
    seconds: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    bound_tokens_per_s: float | None  # None: the device gave no figures
    ttft_ms: list[float]  # median and 99th percentile
    tpot_ms: list[float]
    num_steps: int
    num_preemptions: int
    num_kv_tokens: int
    stages: list[dict[str, Any]]


def run(arguments: Sequence[str]) -> int:
    """The command's exit status."""
    kind, *rest = list(arguments) or ["--help"]
    if kind not in _KINDS:
        print(f"usage: penstock bench {'|'.join(_KINDS)} MODEL [options]; --help lists them", file=sys.stderr)
        return 0 if kind in ("-h", "--help") else 2
    parsed = _parser(kind).parse(rest)
    rate = float(parsed.request_rate) if kind == "serve-sim" else None
    config = engine_config(parsed)
    requests = make_workload(parsed.workload, parsed.num_requests, read_model_config(config.model).vocab_size, rate)
    start_s = time.monotonic()
    with LLM.from_config(config) as llm:
        ready_s = time.monotonic() - start_s
        print(stage_table(llm.handle.stages, llm.handle.model_config.num_hidden_layers), flush=True)
        _warm(llm, requests)
        at_once = len(requests) if rate else parsed.at_once or len(requests)
        figures = measure(llm, lambda: _answers(llm, requests, at_once) if rate is None else arriving(llm, requests))
        figures.bound_tokens_per_s = bound_of(llm.handle, requests, at_once)
    figures.workload, figures.ready_s, figures.num_at_once = parsed.workload, ready_s, at_once
    figures.requests_per_s = rate
    print(_table(figures))
    print(json.dumps(asdict(figures)))
    return 0


def _parser(kind: str) -> Parser:
    parser = Parser(prog=f"penstock bench {kind}", description=__doc__, usage="%(prog)s MODEL [options]")
    what = parser.add_argument_group("workload")
    what.add_argument("--workload", choices=sorted(WORKLOADS), default="chat", help="lengths of prompts and answers")
    what.add_argument("--num-requests", type=count, default=512, metavar="N", help="requests in all (default 512)")
    if kind == "serve-sim":
        what.add_argument("--request-rate", type=_rate, default=40.0, metavar="X", help="a second (default 40)")
    else:
        what.add_argument("--at-once", type=count, metavar="N", help="requests open at a time (default all)")
    add_settings(parser, default_model=None)  # the demo's vocabulary is too small for any workload
    return parser


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return rate


def measure(llm: LLM, answers: Callable[[], list[RequestOutput]]) -> Figures:
    """Runs the requests and reads the engine's figures before and after."""
    before, start_s = llm.stats(), time.monotonic()
    outputs = answers()
    seconds = time.monotonic() - start_s
    after = llm.stats()
    num_tokens = sum(output.num_generated_tokens for output in outputs)
    stages = [_stage(*pair) for pair in zip(before["stages"], after["stages"], strict=True)]
    return Figures(
        workload="",
        num_requests=len(outputs),
        num_at_once=0,
        requests_per_s=None,
        ready_s=0.0,
        seconds=seconds,
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        output_tokens=num_tokens,
        output_tokens_per_s=num_tokens / seconds,
        bound_tokens_per_s=None,
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
    return _told([output for _, output in llm.complete(asked, at_once)])


def arriving(llm: LLM, requests: Sequence[Request]) -> list[RequestOutput]:
    """The answers to requests that come at their own times."""

    async def answer(engine: AsyncEngine, request: Request) -> RequestOutput:
        await asyncio.sleep(request.arrival_s)
        try:
            async for output in engine.generate(request.prompt_token_ids, _params(request.max_tokens)):
                last = output
        except RequestError as error:
            return _refused(request, error.reason)
        return last

    async def answer_all() -> list[RequestOutput]:
        engine = connect(llm.name)
        try:
            return list(await asyncio.gather(*(answer(engine, request) for request in requests)))
        finally:
            engine.close()

    return _told(asyncio.run(answer_all()))


def _refused(request: Request, reason: str) -> RequestOutput:
    """What `complete` answers to a request that can't be served."""
    metrics = RequestMetrics(time.monotonic())
    return RequestOutput("", None, request.prompt_token_ids, None, [], finished=True, metrics=metrics, error=reason)


def _told(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """The outputs, and a line about those that failed."""
    failed = [output.error for output in outputs if output.error is not None]
    if failed:
        print(f"penstock: {len(failed)} of {len(outputs)} requests failed: {failed[0]}", file=sys.stderr)
    return outputs


def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )


def _warm(llm: LLM, requests: Sequence[Request]) -> None:
    """Steps of many shapes before the clock starts."""
    few = warming(requests)
    _answers(llm, few, len(few))


def warming(requests: Sequence[Request]) -> list[Request]:
    """Prompts as long as the first ones but of other tokens: those that are measured must not be in a prefix cache."""
    return [Request(0.0, each.prompt_token_ids[::-1], _WARM_TOKENS) for each in requests[:_WARM_REQUESTS]]


def _stage(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A stage's share of busy time and of each cause of idling, between the two readings."""
    names = StageTotals.__dataclass_fields__
    earlier, later = (StageTotals(**{name: each[name] for name in names if name in each}) for each in (before, after))
    spent = later.since(earlier)
    elapsed_ns = max(1, spent.last_end_ns - spent.first_start_ns)
    idle = {cause: round(ns / elapsed_ns, 4) for cause, ns in spent.wait_ns.items()}
    busy_ms, host_ms = (ns / max(1, spent.steps) / 1e6 for ns in (spent.busy_ns, spent.host_ns))
    share = round(spent.busy_share, 4)
    return {
        "steps": spent.steps,
        "busy": share,
        "idle": idle,
        "busy_ms_per_step": busy_ms,
        "host_ms_per_step": host_ms,
    }


def _median_and_p99(seconds: Sequence[float | None]) -> list[float]:
    known = [each for each in seconds if each is not None]
    return [round(float(each) * 1000, 2) for each in np.percentile(known, (50, 99))] if known else []


def _table(figures: Figures) -> str:
    rate = figures.requests_per_s
    pace = f"{rate:g} a second" if rate else f"{figures.num_at_once} at once"
    bound = figures.bound_tokens_per_s
    reached = f", {figures.output_tokens_per_s / bound:.0%} reached" if bound else ""
    rows = {
        "workload": f"{figures.workload}, {figures.num_requests} requests, {pace}",
        "ready after": f"{figures.ready_s:.1f} s",
        "output tokens/s": f"{figures.output_tokens_per_s:.0f} ({figures.output_tokens} in {figures.seconds:.2f} s)",
        "bound": f"{bound:.0f} tokens/s{reached}" if bound else "unknown: the device gave no figures",
        "TTFT, TPOT": f"{figures.ttft_ms} ms, {figures.tpot_ms} ms (median, p99)",
        "steps": f"{figures.num_steps}, {figures.num_preemptions} preemptions, cache of {figures.num_kv_tokens} tokens",
    }
    for index, stage in enumerate(figures.stages):
        idle = ", ".join(f"{cause} {share:.1%}" for cause, share in stage["idle"].items() if share > 0.0005)
        spent = f"{stage['busy_ms_per_step']:.2f} ms a step, {stage['host_ms_per_step']:.2f} of the host"
        rows[f"stage {index}"] = f"{stage['busy']:.1%} busy, {spent}; idle: {idle or 'never'}"
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())
