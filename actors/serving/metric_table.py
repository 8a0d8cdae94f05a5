"""The figures that operators see, each defined once. Every one also carries its replica and its model as labels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from ..histogram import LATENCY_BOUNDS_S

PREFIX = "penstock_"
OWN_LABELS = ("replica", "model")
_TOKEN_BOUNDS_S = tuple(bound for bound in LATENCY_BOUNDS_S if bound <= 5.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric as Prometheus knows it."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...] = ()  # besides OWN_LABELS
    bounds: tuple[float, ...] = ()  # of a histogram's buckets


class Metric(Enum):
    """In the order in which they are shown."""

    # Told by the HTTP server.
    ADMITTED = MetricSpec("counter", "requests_admitted_total", "Prompts taken in.")
    FINISHED = MetricSpec("counter", "requests_finished_total", "Prompts served to their end.", ("finish_reason",))
    REFUSED = MetricSpec("counter", "requests_refused_total", "Requests answered with an HTTP error.", ("status",))
    TTFT = MetricSpec(
        "histogram", "time_to_first_token_seconds", "From arrival to the first token.", bounds=LATENCY_BOUNDS_S
    )
    TPOT = MetricSpec(
        "histogram", "time_per_output_token_seconds", "Between two tokens of a request, mean.", bounds=_TOKEN_BOUNDS_S
    )
    E2E = MetricSpec(
        "histogram", "e2e_request_latency_seconds", "From arrival to the last token.", bounds=LATENCY_BOUNDS_S
    )
    # Told by the engine.
    RUNNING = MetricSpec("gauge", "requests_running", "Sequences with a slot, prefilling ones included.")
    WAITING = MetricSpec("gauge", "requests_waiting", "Sequences that wait for a slot.")
    PREFILLING = MetricSpec("gauge", "requests_prefilling", "Running sequences whose prompt is not planned to its end.")
    QUEUE_TIME = MetricSpec(
        "histogram",
        "queue_time_seconds",
        "From a sequence's arrival at the engine to the first step that holds it.",
        bounds=LATENCY_BOUNDS_S,
    )
    PROMPT_TOKENS = MetricSpec("counter", "prompt_tokens_total", "Prompt tokens of all sequences that ran.")
    GENERATION_TOKENS = MetricSpec("counter", "generation_tokens_total", "Generated tokens.")
    KV_CACHE_USAGE = MetricSpec(
        "gauge", "kv_cache_usage", "Share of the KV cache's blocks that sequences hold, 0 to 1."
    )
    PREFIX_QUERIES = MetricSpec("counter", "prefix_cache_queries_total", "Tokens looked up in the prefix cache.")
    PREFIX_HITS = MetricSpec("counter", "prefix_cache_hits_total", "Tokens found in the prefix cache.")
    PREEMPTIONS = MetricSpec("counter", "preemptions_total", "Sequences that lost their blocks to others.")
    STEPS = MetricSpec("counter", "steps_total", "Steps planned.")
    STAGE_SHARE = MetricSpec(
        "gauge", "stage_busy_share", "A stage's busy share since the last look, 0 to 1.", ("stage",)
    )
    STAGE_BUSY = MetricSpec("counter", "stage_busy_seconds_total", "Time that a stage computed.", ("stage",))
    STAGE_IDLE = MetricSpec(
        "counter", "stage_idle_seconds_total", "Time that a stage waited, by cause.", ("stage", "cause")
    )
