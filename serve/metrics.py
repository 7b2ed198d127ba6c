"""Every metric of the service, declared once. `METRICS` records into this process; `text` is the Prometheus exposition.

Under Ray Serve the same values also go to Ray's own metrics (`use_ray`), which its agents export on every node, so that
one scrape per node sees all replicas. No label ever names a user or a tenant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from perpcs.generate.limits import Stats

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PREFIX = "perpcs_serve_"


class _Metric:
    """A metric in prometheus_client, and in Ray when that is switched on."""

    def __init__(self, make: Callable[[], Any], kind: str, about: tuple[str, str, tuple[str, ...]]) -> None:
        self.own, self.kind, self.about = make(), kind, about
        self.ray: Any = None

    def use_ray(self) -> None:
        """Also record with ray.util.metrics."""
        from ray.util import metrics

        name, doc, labels = self.about
        if self.kind == "histogram":
            self.ray = metrics.Histogram(name, doc, boundaries=list(_SECONDS), tag_keys=labels)
        else:
            made = metrics.Counter if self.kind == "counter" else metrics.Gauge
            self.ray = made(name, doc, tag_keys=labels)

    def add(self, value: float = 1.0, **labels: str) -> None:
        """Raise a counter."""
        if value <= 0:
            return
        (self.own.labels(**labels) if labels else self.own).inc(value)
        if self.ray is not None:
            self.ray.inc(value, tags=labels)

    def set(self, value: float, **labels: str) -> None:
        """Set a gauge."""
        (self.own.labels(**labels) if labels else self.own).set(value)
        if self.ray is not None:
            self.ray.set(value, tags=labels)

    def observe(self, value: float, **labels: str) -> None:
        """Count a value into a histogram."""
        (self.own.labels(**labels) if labels else self.own).observe(value)
        if self.ray is not None:
            self.ray.observe(value, tags=labels)


class Metrics:
    """All of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._all: list[_Metric] = []
        self.requests = self._counter("requests_total", "Requests by route and status.", "route", "status")
        self.request_seconds = self._histogram("request_seconds", "Until the last byte.", "route")
        self.tokens = self._counter("generated_tokens_total", "Tokens generated.", "model")
        self.prompt_tokens = self._counter("prompt_tokens_total", "Tokens of prompts.", "model")
        self.first_token_seconds = self._histogram("first_token_seconds", "Until the first text.", "model")
        self.assembly_seconds = self._histogram("assembly_seconds", "Assembly by phase.", "phase")
        self.load_seconds = self._histogram("adapter_load_seconds", "Reading a cold adapter.", "phase")
        self.limited = self._counter("limited_total", "Requests refused by a limit.", "limit")
        self._gauges = {
            "active": self._gauge("active_requests", "Requests in the batch."),
            "waiting": self._gauge("waiting_requests", "Requests that wait for a slot or the cache."),
            "users_in_batch": self._gauge("users_in_batch", "Distinct users in the last step."),
        }
        self.assembling = self._gauge("assemblies_under_way", "Histories that wait or are worked on.")
        self._counted = {
            "steps": self._counter("steps_total", "Forward passes."),
            "failed_steps": self._counter("failed_steps_total", "Forward passes that failed."),
            "slot_hits": self._counter("slot_hits_total", "Requests whose adapter was in the bank."),
            "slot_misses": self._counter("slot_misses_total", "Requests whose adapter had to be read."),
            "evictions": self._counter("slot_evictions_total", "Adapters that gave way to others."),
        }
        self._last = dict.fromkeys(self._counted, 0)

    def engine(self, stats: Stats, assembling: int) -> None:
        """Take over an engine's counters."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stats, name))
        self.assembling.set(assembling)
        for name, counter in self._counted.items():
            value = getattr(stats, name)
            counter.add(value - self._last[name] if value >= self._last[name] else value)
            self._last[name] = value

    def use_ray(self) -> None:
        """Record with Ray as well; in processes of Ray Serve."""
        for metric in self._all:
            metric.use_ray()

    def text(self) -> bytes:
        """This process's values for a scraper."""
        return bytes(generate_latest(self.registry))

    def _counter(self, name: str, doc: str, *labels: str) -> _Metric:
        return self._add("counter", Counter, name, doc, labels)

    def _gauge(self, name: str, doc: str, *labels: str) -> _Metric:
        return self._add("gauge", Gauge, name, doc, labels)

    def _histogram(self, name: str, doc: str, *labels: str) -> _Metric:
        return self._add("histogram", Histogram, name, doc, labels)

    def _add(self, kind: str, made: Any, name: str, doc: str, labels: tuple[str, ...]) -> _Metric:
        options = {"buckets": _SECONDS} if kind == "histogram" else {}
        name = PREFIX + name
        metric = _Metric(
            lambda: made(name, doc, labels, registry=self.registry, **options), kind, (name, doc, labels)
        )
        self._all.append(metric)
        return metric


METRICS = Metrics()
"""Of this process."""
