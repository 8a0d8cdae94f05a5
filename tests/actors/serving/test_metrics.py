"""What operators see: counters that only grow, whatever an engine tells, and one exposition for all replicas."""

from __future__ import annotations

import random
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from penstock.actors.histogram import Histogram
from penstock.actors.serving import metric_board
from penstock.actors.serving.metric_engine import spread
from penstock.actors.serving.metric_merge import merge_expositions
from penstock.actors.serving.metric_table import Metric
from penstock.actors.serving.metrics import FinishedRequest, ServingMetrics

RECORD = FinishedRequest("r", "/v1/completions", 10, 4, 8, "stop", 0.2, 0.03, 0.41, 200)
BUSY = {"pid": 2, "busy_share": 0.4, "busy_ns": 2_000_000_000, "wait_ns": {"plan": 500_000_000}, "waiting_ns": 0}


def told(uptime_s: float, pid: int = 1, **scheduler: int) -> dict[str, Any]:
    """An engine's figures; counters not named are 0."""
    counters = ("prompt_tokens", "generated_tokens", "prefix_query_tokens", "prefix_hit_tokens", "preemptions", "steps")
    moment = {"running": 3, "waiting": 2, "prefilling": 1, "held_blocks": 6, "free_blocks": 18}
    return {
        "pid": pid,
        "uptime_s": uptime_s,
        "scheduler": {f"num_{name}": 0 for name in counters} | moment | scheduler,
        "queue_time_s": asdict(Histogram()),
        "stages": [],
    }


def parse(text: str) -> list[Family]:
    return list(text_string_to_metric_families(text))


def value(metrics: ServingMetrics, name: str, **labels: str) -> float | None:
    """A sample of an exposition by its name and some of its labels."""
    wanted = labels.items()
    samples = [sample for family in parse(metrics.render()) for sample in family.samples]
    found = [s.value for s in samples if s.name == f"penstock_{name}" and wanted <= s.labels.items()]
    assert len(found) < 2, f"{name} {labels} is there {len(found)} times"
    return found[0] if found else None


@pytest.fixture
def metrics() -> ServingMetrics:
    return ServingMetrics("replica-1", "demo")


def test_every_family_has_the_prefix_and_every_sample_its_replica_and_model(metrics: ServingMetrics) -> None:
    metrics.arrived(1)
    metrics.refused(429)
    metrics.finished(RECORD)
    metrics.observe_engine(told(1.0) | {"stages": [BUSY]})
    families = parse(metrics.render())
    assert {f.name for f in families} == {f"penstock_{m.value.name.removesuffix('_total')}" for m in Metric}
    for sample in (sample for family in families for sample in family.samples):
        assert (sample.labels["replica"], sample.labels["model"]) == ("replica-1", "demo"), sample


def test_a_finished_request_counts_once_in_each_distribution(metrics: ServingMetrics) -> None:
    metrics.finished(RECORD)
    metrics.finished(replace(RECORD, finish_reason="abort", ttft_s=None, tpot_s=None))
    assert value(metrics, "requests_finished_total", finish_reason="stop") == 1
    assert value(metrics, "requests_finished_total", finish_reason="abort") == 1
    for name, seconds in (
        ("time_to_first_token", 0.2),
        ("time_per_output_token", 0.03),
        ("e2e_request_latency", 0.41),
    ):
        assert value(metrics, f"{name}_seconds_count") == 1
        assert value(metrics, f"{name}_seconds_sum") == pytest.approx(seconds)


def test_the_moment_is_shown_as_it_is(metrics: ServingMetrics) -> None:
    metrics.observe_engine(told(1.0))
    names = ("requests_running", "requests_waiting", "requests_prefilling", "kv_cache_usage")
    assert [value(metrics, name) for name in names] == [3, 2, 1, 0.25]


def test_counters_never_go_back_when_figures_come_late_or_twice(metrics: ServingMetrics) -> None:
    early, late = told(2.0, num_steps=100, num_generated_tokens=70), told(1.0, num_steps=60, running=9)
    for figures in (early, late, early, told(3.0, num_steps=110, num_generated_tokens=80)):
        metrics.observe_engine(figures)
    assert value(metrics, "steps_total") == 110
    assert value(metrics, "generation_tokens_total") == 80
    assert value(metrics, "requests_running") == 3


def test_an_engine_started_anew_adds_to_what_its_predecessor_did(metrics: ServingMetrics) -> None:
    for figures in (told(50.0, num_steps=100), told(1.0, pid=7, num_steps=5), told(2.0, pid=7, num_steps=8)):
        metrics.observe_engine(figures)
    assert value(metrics, "steps_total") == 108


def test_a_replica_started_anew_begins_at_0(metrics: ServingMetrics) -> None:
    metrics.finished(RECORD)
    assert value(ServingMetrics("replica-1", "demo"), "time_to_first_token_seconds_count") == 0
    assert value(ServingMetrics("replica-1", "demo"), "steps_total") == 0


def test_a_stages_time_is_split_and_what_it_did_not_tell_is_made_up_for(metrics: ServingMetrics) -> None:
    silent = {"pid": 2, "last_retired_step": 9, "busy_share": 0.0}
    more = BUSY | {"busy_ns": 5_000_000_000, "wait_ns": {"plan": 500_000_000, "tokens": 250_000_000}}
    for uptime_s, stage in ((10.0, BUSY), (12.0, silent), (16.0, more), (16.1, more)):
        metrics.observe_engine(told(uptime_s) | {"stages": [stage]})
    assert value(metrics, "stage_busy_seconds_total", stage="0") == 5.0
    assert value(metrics, "stage_idle_seconds_total", stage="0", cause="plan") == 0.5
    assert value(metrics, "stage_idle_seconds_total", stage="0", cause="tokens") == 0.25
    assert value(metrics, "stage_busy_share", stage="0") == 0.5, "3 s of the 6 s since the stage told the last time"


def test_a_wait_that_goes_on_counts_while_it_does_and_once(metrics: ServingMetrics) -> None:
    looks = [(10.0, BUSY), (12.0, BUSY | {"waiting_ns": 2_000_000_000}), (16.0, BUSY | {"waiting_ns": 6_000_000_000})]
    for expected, (uptime_s, stage) in zip((0.5, 2.5, 6.5), looks, strict=True):
        metrics.observe_engine(told(uptime_s) | {"stages": [stage]})
        assert value(metrics, "stage_idle_seconds_total", stage="0", cause="plan") == expected
    ended = BUSY | {"wait_ns": {"plan": 7_000_000_000}}
    metrics.observe_engine(told(17.0) | {"stages": [ended]})
    assert value(metrics, "stage_idle_seconds_total", stage="0", cause="plan") == 7.0


def test_queue_times_keep_their_buckets_and_their_sum(metrics: ServingMetrics) -> None:
    rng, seen = random.Random(1), Histogram()
    for round_number in range(4):
        for _ in range(50):
            seen.observe(10 ** rng.uniform(-4, 3))
        metrics.observe_engine(told(1.0 + round_number) | {"queue_time_s": deepcopy(asdict(seen))})
    assert value(metrics, "queue_time_seconds_count") == 200
    assert value(metrics, "queue_time_seconds_sum") == pytest.approx(seen.total)
    for index, bound in enumerate(seen.bounds):
        assert value(metrics, "queue_time_seconds_bucket", le=str(bound)) == sum(seen.counts[: index + 1])


@pytest.mark.parametrize("values", [[0.0], [0.0007], [0.5, 0.5], [1000.0], [1500.0], [0.001, 0.001, 999.9], []])
def test_spread_values_fall_into_their_buckets(values: list[float]) -> None:
    seen, again = Histogram(), Histogram()
    for each in values:
        seen.observe(each)
    for each in spread(list(seen.bounds), seen.counts, seen.total):
        again.observe(each)
    assert again.counts == seen.counts
    assert again.total == pytest.approx(seen.total, abs=1e-8)


def test_replicas_become_one_exposition_in_which_none_is_missing() -> None:
    texts = []
    for number in range(3):
        metrics = ServingMetrics(f"replica-{number}", 'a "model"\n# TYPE of\u2028 name')
        metrics.finished(replace(RECORD, finish_reason=["stop", "length", "stop"][number]))
        metrics.observe_engine(told(1.0, num_steps=number) | {"stages": [BUSY] * number})
        texts.append(metrics.render())
    merged = merge_expositions(texts)
    families = parse(merged)
    assert len({family.name for family in families}) == len(families) == merged.count("\n# TYPE")
    replicas = {s.labels["replica"] for f in families if f.name == "penstock_steps" for s in f.samples}
    assert replicas == {"replica-0", "replica-1", "replica-2"}
    assert samples(families) == samples(family for text in texts for family in parse(text))
    assert merge_expositions([texts[0]]) == texts[0]
    assert merge_expositions([]) == ""


def samples(families: Iterable[Family]) -> list[str]:
    return sorted(str(sample) for family in families for sample in family.samples)


class FakeRayMetric:
    """Stands in for the metrics of `ray.util.metrics`."""

    made: ClassVar[dict[str, FakeRayMetric]] = {}

    def __init__(self, name: str, *rest: Any) -> None:
        self.name = name
        self.told: list[tuple[float, dict[str, str]]] = []
        self.default_tags: dict[str, str] = {}
        FakeRayMetric.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.default_tags = tags

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        self.told.append((value, tags))

    set = observe = inc


def test_rays_exporters_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {kind: type(kind, (FakeRayMetric,), {}) for kind in ("Counter", "Gauge", "Histogram")}
    monkeypatch.setattr(metric_board, "ray_metrics", SimpleNamespace(**kinds))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    metrics = ServingMetrics("replica-1", "demo")
    metrics.refused(429)
    metrics.finished(RECORD)
    metrics.observe_engine(told(1.0, num_steps=5))
    metrics.observe_engine(told(2.0, num_steps=9))
    made = FakeRayMetric.made
    assert made["penstock_requests_refused_total"].told == [(1, {"status": "429"})]
    assert made["penstock_time_to_first_token_seconds"].told == [(0.2, {})]
    assert made["penstock_steps_total"].told == [(5, {}), (4, {})]
    assert made["penstock_requests_running"].told == [(3, {}), (3, {})]
    assert {tuple(each.default_tags.items()) for each in made.values()} == {
        (("replica", "replica-1"), ("model", "demo"))
    }
