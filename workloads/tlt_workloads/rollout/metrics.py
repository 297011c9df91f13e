"""The pod's numbers as `tlt:*` on vLLM's own `/metrics`, read when scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from tlt_workloads import contract
from tlt_workloads.contract import DrafterRefusal, DraftSource
from tlt_workloads.rollout.pod import RolloutPod


class PodCollector(Collector):
    """Makes metrics of the pod's facts."""

    def __init__(self, pod: RolloutPod) -> None:
        self._pod = pod

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known at each scrape, and registering must not read the pod."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        facts = self._pod.facts()
        gauges = {
            "tlt:idle": ("1 while the pod is idle", float(facts.idle)),
            "tlt:lent": ("1 while the GPU is lent", float(facts.lease is not None)),
            "tlt:policy_version": ("number of the policy in the engine", float(facts.policy_version)),
            "tlt:draft_length": (
                "tokens drafted at once, as decided for the last step",
                float(facts.drafting.draft_length if facts.drafting else 0),
            ),
            "tlt:draft_by_ngram": (
                "1 while drafts are looked up in the request instead of guessed by the drafter",
                float(facts.drafting is not None and facts.drafting.source is DraftSource.NGRAM),
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        counters = {
            "tlt:busy_seconds": ("time with requests in flight, paused or updating", facts.busy_seconds),
            "tlt:idle_seconds": ("time without", facts.idle_seconds),
            "tlt:lent_seconds": ("part of the idle time in which the GPU was lent", facts.lent_seconds),
            "tlt:capture_tokens": ("tokens recorded with hidden states", facts.capture.tokens),
            "tlt:capture_bytes": ("bytes written", facts.capture.bytes),
            "tlt:capture_steps": ("steps of the engine that the capture saw", facts.capture.steps),
            "tlt:capture_seconds": ("time taken from the decode path", facts.capture.seconds),
            "tlt:drafts": ("drafts since the active drafter was loaded", facts.acceptance.drafts),
            "tlt:draft_tokens": ("drafted tokens since then", facts.acceptance.draft_tokens),
            "tlt:accepted_tokens": ("accepted tokens since then", facts.acceptance.accepted_tokens),
            "tlt:ngram_drafts": ("drafts looked up in the request since boot", facts.ngram.drafts),
            "tlt:ngram_accepted_tokens": ("accepted tokens of these", facts.ngram.accepted_tokens),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
        dropped = CounterMetricFamily("tlt:capture_dropped_tokens", "tokens not recorded, by reason", labels=["reason"])
        for reason, tokens in contract.encode(facts.capture.drops).items():
            dropped.add_metric([reason], tokens)
        yield dropped
        refusals = CounterMetricFamily("tlt:drafter_refusals", "drafters that were not taken", labels=["reason"])
        for reason in DrafterRefusal:  # also those that have not happened, so that a rate sees the first one
            refusals.add_metric([reason.value], facts.drafter_refusals.get(reason.value, 0))
        yield refusals
        lag = GaugeMetricFamily("tlt:drafter_policy_lag", "policy updates since the last that the drafter learnt from")
        lag.add_metric([], float("nan") if facts.drafter_lag is None else facts.drafter_lag)
        yield lag
        drafter = InfoMetricFamily("tlt:drafter", "the drafter in the engine")
        drafter.add_metric(
            [],
            {
                "revision": facts.drafter_revision or "",
                "digest": facts.drafter_digest or "",
                "method": facts.drafter_method or "",
            },
        )
        yield drafter


def publish(pod: RolloutPod) -> None:
    """Adds the pod to the registry that `/metrics` serves."""
    REGISTRY.register(PodCollector(pod))
