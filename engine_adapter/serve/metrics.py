"""What the server counts, in Prometheus' text format.

Owns: the registry of one server.
Knows nothing about: requests, the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine_adapter.engine import EngineStats
from engine_adapter.engine.generation import TextGeneration

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        """``stats`` is called for every reading of the metrics."""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))
        self._requests = Counter("maskd_http_requests", "Answers sent.", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "maskd_http_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "maskd_first_token_seconds",
            "From submitting to the first token, grammar compile included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._grammars = Counter(
            "maskd_guided_requests",
            "Requests with a grammar, by what masked them.",
            ["backend"],
            registry=self._registry,
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def opened(self, generation: TextGeneration, seconds: float) -> None:
        """Counts a request that began to answer, ``seconds`` after it was submitted."""
        self._first.observe(seconds)
        if generation.report is not None:
            self._grammars.labels(generation.report.backend).inc()

    def text(self) -> bytes:
        """Returns all metrics."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Asks the engine for its numbers at every reading."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, value, text in (
            ("slots", stats.slots, "Outputs that can run at a time."),
            ("running", stats.running, "Outputs that have a slot."),
            ("waiting", stats.waiting, "Outputs that wait for their grammar or a slot."),
            ("queue_limit", stats.queue_limit, "Most outputs that may wait."),
            ("mask_wait_p50_seconds", stats.mask_wait_p50_seconds, "Wait for masks in a turn, median of the latest."),
            ("mask_wait_p99_seconds", stats.mask_wait_p99_seconds, "Wait for masks in a turn, 99th percentile."),
            ("turn_p50_seconds", stats.turn_p50_seconds, "Length of a turn, median of the latest."),
            ("turn_p99_seconds", stats.turn_p99_seconds, "Length of a turn, 99th percentile."),
        ):
            yield GaugeMetricFamily(f"maskd_engine_{name}", text, value)
        yield CounterMetricFamily("maskd_engine_prompt_tokens", "Tokens of all prompts.", stats.prompt_tokens)
        yield CounterMetricFamily("maskd_engine_generated_tokens", "Tokens of all outputs.", stats.generated_tokens)
        yield CounterMetricFamily(
            "maskd_engine_failed_turns", "Turns that failed, with all outputs in them.", stats.failed_turns
        )
        finished = CounterMetricFamily("maskd_engine_finished", "Outputs, by how they ended.", labels=["reason"])
        for reason, count in stats.finished.items():
            finished.add_metric([reason], count)
        yield finished
