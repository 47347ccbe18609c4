"""The metrics, read from the daemon when Prometheus asks: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from s3spool.control.status import Status
from s3spool.control.views import STATES
from s3spool.upload.stats import Histogram, Stats

# Not OpenMetrics: there `files_total` and `files` would be one family.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Collector):
    """Metrics from the answer of `status` and the counters. Thread-safe."""

    def __init__(self, status: Callable[[], Status], stats: Stats, node: str) -> None:
        self._status = status
        self._stats = stats
        self._node = node
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        status, stats = self._status(), self._stats
        files, watch, destination = status.files, status.watch, status.destination
        yield from _counts("s3spool_files", "Files by result since the start.", "result", _results(stats))
        gauge = GaugeMetricFamily(
            "s3spool_files", "Files by state now; uploaded ones as `status` counts them.", labels=["state"]
        )
        for state in STATES:
            gauge.add_metric([state], getattr(files, state))
        yield gauge
        for name, text, value in (
            ("oldest_unsent_seconds", "Age of the oldest unsent file.", status.oldest_unsent_s),
            ("destination_paused", "1 while no uploads begin.", int(destination.state == "paused")),
            ("paused_by_hand", "1 between `s3spool pause` and `resume`.", int(destination.by_hand)),
        ):
            yield GaugeMetricFamily(f"s3spool_{name}", text, value=value)
        for name, text, value in (
            ("uploaded_bytes", "Bytes of uploaded files since the start.", stats.bytes_uploaded),
            ("watch_overflows", "Overflows of the kernel's event queue.", watch.overflows),
            ("watch_missed_files", "Files that only a scan found.", watch.files_missed),
        ):
            yield CounterMetricFamily(f"s3spool_{name}", text, value=value)
        failures = dict(stats.failures)  # a copy: workers add to it
        yield from _counts("s3spool_retries", "Failed attempts by error code.", "error_code", failures)
        yield _histogram("s3spool_upload_seconds", "From the start of the attempt to S3's answer.", stats.upload_s)
        yield _histogram(
            "s3spool_completion_to_upload_seconds", "From the file's last change to S3's answer.", stats.completion_s
        )
        info = GaugeMetricFamily("s3spool_info", "Version and node.", labels=["version", "node"])
        info.add_metric([status.version, self._node], 1)
        yield info


def _results(stats: Stats) -> dict[str, int]:
    return {"uploaded": stats.uploaded, "parked": stats.parked, "vanished": stats.vanished, "failed": stats.failed}


def _counts(name: str, text: str, label: str, values: Mapping[str, float]) -> Iterator[Metric]:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    yield family


def _histogram(name: str, text: str, found: Histogram) -> Metric:
    total, counts = found.total, list(accumulate(found.counts))
    bounds = [*(f"{float(bound)}" for bound in found.bounds), "+Inf"]
    return HistogramMetricFamily(name, text, buckets=list(zip(bounds, counts, strict=True)), sum_value=total)
