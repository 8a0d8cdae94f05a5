"""Feeds every metric of the table to two readers: this replica's own exposition, and Ray's exporters."""

from __future__ import annotations

import ray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from ray.util import metrics as ray_metrics

from .metric_table import OWN_LABELS, PREFIX, Metric, MetricSpec


class Board:
    """One replica's figures. For any thread. A new one begins at 0."""

    def __init__(self, replica: str, model: str) -> None:
        """Ray's exporters are fed when this process is in a cluster by now."""
        # Else each counter has a second series, which says when the replica started.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        own, in_ray = (replica, model), ray.is_initialized()
        self._feeds = {metric: _Feed(metric.value, self._registry, own, in_ray) for metric in Metric}

    def feed(self, metric: Metric, value: float, *labels: str) -> None:
        """Adds to a counter, sets a gauge, observes in a histogram; `labels` in the order of the metric's own."""
        self._feeds[metric].take(value, labels)

    def render(self) -> str:
        """Prometheus' text exposition."""
        return generate_latest(self._registry).decode()


class _Feed:
    """One metric on both sides."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry, own: tuple[str, str], in_ray: bool) -> None:
        self._keys = spec.labels
        self._own = own
        self._here = _own_metric(spec, registry)
        self._ray = _ray_metric(spec, dict(zip(OWN_LABELS, own, strict=True))) if in_ray else None
        if not spec.labels:
            self._here.labels(*own)  # shows as 0 before anything has happened

    def take(self, value: float, labels: tuple[str, ...]) -> None:
        child = self._here.labels(*self._own, *labels)
        if isinstance(child, Counter):
            child.inc(value)
        elif isinstance(child, Gauge):
            child.set(value)
        else:
            child.observe(value)
        if self._ray is not None:
            self._tell_ray(value, dict(zip(self._keys, labels, strict=True)))

    def _tell_ray(self, value: float, tags: dict[str, str]) -> None:
        if isinstance(self._ray, ray_metrics.Counter):
            if value > 0:  # it takes no other
                self._ray.inc(value, tags)
        elif isinstance(self._ray, ray_metrics.Gauge):
            self._ray.set(value, tags)
        elif isinstance(self._ray, ray_metrics.Histogram):
            self._ray.observe(value, tags)


def _own_metric(spec: MetricSpec, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    name, labels = PREFIX + spec.name, (*OWN_LABELS, *spec.labels)
    if spec.kind == "histogram":
        return Histogram(name, spec.text, labels, registry=registry, buckets=spec.bounds)
    return (Counter if spec.kind == "counter" else Gauge)(name, spec.text, labels, registry=registry)


def _ray_metric(spec: MetricSpec, own: dict[str, str]) -> ray_metrics.Metric:
    name, keys = PREFIX + spec.name, (*OWN_LABELS, *spec.labels)
    made: ray_metrics.Metric
    if spec.kind == "histogram":
        made = ray_metrics.Histogram(name, spec.text, list(spec.bounds), keys)
    else:
        made = (ray_metrics.Counter if spec.kind == "counter" else ray_metrics.Gauge)(name, spec.text, keys)
    made.set_default_tags(own)
    return made
