"""The gateway's numbers for Prometheus, read from the live state at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tlt_workloads.contract import GatewayState

BATCH_SECONDS = (1, 2, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 1200)


class StateCollector(Collector):
    """Turns the public state into metrics, so that the two cannot differ."""

    def __init__(self, view: Callable[[], GatewayState]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """One pass over the state."""
        state = self._view()
        counters = {
            "completions": ("Completions asked for", state.requests),
            "retries": ("Completions given to another pod after theirs failed", state.retried_requests),
            "failures": ("Completions that no pod could answer", state.failed_requests),
        }
        for name, (description, value) in counters.items():
            yield CounterMetricFamily(f"tlt_gateway_{name}", description, value=value)
        yield GaugeMetricFamily("tlt_gateway_queued", "Completions that wait for a pod", value=state.queued)
        yield GaugeMetricFamily("tlt_gateway_policy_version", "Policy in force", value=state.policy_version)
        if state.remaining is not None:
            yield GaugeMetricFamily(
                "tlt_gateway_remaining_seconds", "Expected time until the last outstanding one", value=state.remaining
            )
        outstanding = GaugeMetricFamily("tlt_gateway_outstanding", "Completions in flight", labels=["pod"])
        healthy = GaugeMetricFamily("tlt_gateway_pod_serves", "1 when the pod takes work", labels=["pod"])
        for backend in state.backends:
            outstanding.add_metric([backend.address], backend.outstanding)
            healthy.add_metric([backend.address], int(backend.healthy))
        yield outstanding
        yield healthy


class GatewayMetrics:
    """All metrics of one gateway."""

    def __init__(self, view: Callable[[], GatewayState]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(StateCollector(view))
        self.batch_seconds = Histogram(
            "tlt_gateway_batch_seconds",
            "Time from a batch of prompts to its last completion",
            buckets=BATCH_SECONDS,
            registry=self._registry,
        )

    def page(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)
