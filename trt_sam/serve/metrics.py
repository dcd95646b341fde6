"""What the service counts and times, for Prometheus; every name begins with `trt_sam_`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "STAGES", "Metrics"]

STAGES = ("read", "picture", "queue", "embed", "decode", "masks")
"""Receiving the request; decoding the picture; waiting for the runner; its encoder; its decoder; masks at full size."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The numbers of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "trt_sam_request_seconds",
            "Time of a request, from its first line to the end of its answer.",
            ("route", "method", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "trt_sam_stage_seconds", "Time of a part of a request.", ("stage",), buckets=_BUCKETS, registry=self.registry
        )
        for stage in STAGES:
            self.stages.labels(stage)
        self.errors = Counter(
            "trt_sam_errors",
            "Requests that were not answered, by the code that the client got.",
            ("code",),
            registry=self.registry,
        )
        self.under_way = Gauge("trt_sam_requests_under_way", "Requests that are being served.", registry=self.registry)
        self.clients_gone = Counter(
            "trt_sam_clients_gone", "Requests whose client closed the connection before the answer.", registry=self.registry
        )

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Add a gauge that is asked when it is scraped."""
        Gauge(name, meaning, registry=self.registry).set_function(read)

    def watch_queue(self, lane: str, read: Callable[[], float]) -> None:
        """Add the length of a lane."""
        if not hasattr(self, "_queue"):
            self._queue = Gauge("trt_sam_queue_length", "Work that waits for the runner.", ("lane",), registry=self.registry)
        self._queue.labels(lane).set_function(read)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
