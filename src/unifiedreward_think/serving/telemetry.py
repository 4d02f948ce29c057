"""What the server counts, for Prometheus at /metrics. Each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Telemetry:
    """The metrics of one server.

    A `shown_first` share far from one half says that the judge looks at the place, not at the candidate; `judgments` of
    a status other than "ok" say that rewards are missing.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "unifiedreward", "registry": self.registry}
        self.requests = Counter("requests", "Requests by path and status.", ["path", "status"], **options)
        self.seconds = Histogram("request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, **options)
        self.judgments = Counter("judgments", "Judgments by task and status.", ["task", "status"], **options)
        self.winners = Counter("winners", "Readable verdicts by the place of the winner.", ["place"], **options)
        self.batch_size = Histogram("batch_size", "Questions in a batch.", buckets=_SIZES, **options)
        self.batch_seconds = Histogram("batch_seconds", "Time of a batch.", buckets=_SECONDS, **options)
        self.shared = Counter("shared_answers", "Questions that needed no judging of their own.", ["how"], **options)
        self.expired = Counter("expired", "Questions that were not answered within their deadline.", **options)
        self.left = Counter("clients_left", "Requests whose client left before the answer.", **options)
        # "shared": another request had just begun to decode it.
        self.media = Counter("media", "Pictures by whether they had to be decoded.", ["cache"], **options)
        self._queue = Gauge("queue", "Questions that wait.", **options)
        self._vision = Gauge(
            "vision_cache", "Pictures shown: remembered or encoded; and bytes held.", ["what"], **options
        )
        self._held = Gauge("held", "What the requests in flight hold.", ["unit"], **options)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Read the length of the queue whenever the metrics are read."""
        self._queue.set_function(length)

    def watch_held(self, unit: str, held: Callable[[], float]) -> None:
        """Read a budget whenever the metrics are read."""
        self._held.labels(unit).set_function(held)

    def watch_vision(self, cache: Any) -> None:
        """Read the `hits`, `misses` and `bytes` of a backend's pictures whenever the metrics are read."""
        for what in ("hits", "misses", "bytes"):
            self._vision.labels(what).set_function(partial(getattr, cache, what))

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
