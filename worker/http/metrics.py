"""Metrics in Prometheus' format: the worker's own counts, and how its streams stand.

The counts are made into metrics when they are asked for; noting them does not know Prometheus. A gauge whose
server does not answer is left out, so that it ends in a graph instead of going on as a line that lies.
Source: https://prometheus.github.io/client_python/collector/custom/
"""

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from worker import __version__
from worker.dependency import State
from worker.http.look import Gauges
from worker.operate.figures import StreamFigures
from worker.vitals import Histogram, Vitals


class Exposition(NamedTuple):
    """A body and its content type."""

    body: bytes
    content_type: str


def exposition(vitals: Vitals, gauges: Gauges, accept: str) -> Exposition:
    """Every metric, in the format that the `Accept` header asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(vitals, gauges))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return Exposition(encode(registry), content_type)


class _Metrics(Collector):
    def __init__(self, vitals: Vitals, gauges: Gauges) -> None:
        self._vitals, self._gauges = vitals, gauges

    def collect(self) -> Iterable[Metric]:
        yield from _counts(self._vitals)
        yield from _times(self._vitals)
        yield from _dependencies(self._vitals)
        yield from _streams(self._gauges)
        yield from _points(self._gauges)
        yield _build(self._vitals)


def _counts(vitals: Vitals) -> Iterator[Metric]:
    entries = CounterMetricFamily(
        "ordergate_entries", "Entries settled by this worker.", labels=("stream", "outcome")
    )
    rejections = CounterMetricFamily(
        "ordergate_rejections", "Entries rejected by this worker.", labels=("stream", "code")
    )
    taken_over = CounterMetricFamily(
        "ordergate_takeovers", "Entries taken over from quiet consumers.", labels=("stream",)
    )
    for stream, its in vitals.streams.items():
        for outcome, count in its.outcomes.items():
            entries.add_metric((stream, outcome), count)
        for code, count in its.rejections.items():
            rejections.add_metric((stream, code), count)
        taken_over.add_metric((stream,), its.taken_over)
    yield from (entries, rejections, taken_over)


def _times(vitals: Vitals) -> Iterator[Metric]:
    batches = HistogramMetricFamily(
        "ordergate_batch_entries", "Entries in a batch.", labels=("stream",)
    )
    stages = HistogramMetricFamily(
        "ordergate_stage_seconds",
        "Seconds that a batch spends in each stage, waiting for servers included.",
        labels=("stream", "stage"),
    )
    latency = HistogramMetricFamily(
        "ordergate_latency_seconds",
        "Seconds from the id of a batch's oldest entry to its acknowledgement.",
        labels=("stream",),
    )
    for stream, its in vitals.streams.items():
        batches.add_metric((stream,), *_buckets(its.batches))
        latency.add_metric((stream,), *_buckets(its.latency))
        for stage, histogram in its.stages.items():
            stages.add_metric((stream, stage), *_buckets(histogram))
    yield from (batches, stages, latency)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' cumulative buckets, and the sum."""
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    counts = [sum(histogram.counts[: n + 1]) for n in range(len(bounds))]
    return list(zip(bounds, map(float, counts), strict=True)), histogram.total


def _dependencies(vitals: Vitals) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "ordergate_dependency_up",
        "1 where the last call of a server worked, 0 where it did not.",
        labels=("dependency",),
    )
    state = GaugeMetricFamily(
        "ordergate_dependency_state",
        "1 for the state that a server is in: it refuses where it is degraded.",
        labels=("dependency", "state"),
    )
    losses = CounterMetricFamily(
        "ordergate_dependency_losses",
        "How often a server went and was connected to anew.",
        labels=("dependency",),
    )
    for dependency in vitals.dependencies:
        up.add_metric((dependency.name,), dependency.state is State.UP)
        losses.add_metric((dependency.name,), dependency.losses)
        for each in State:
            state.add_metric((dependency.name, each.value), dependency.state is each)
    yield from (up, state, losses)


#: Gauges of a stream: name, what it says, and its value; None where Redis does not tell.
STREAM_GAUGES = {
    "ordergate_stream_entries": ("Entries in the stream, settled ones included.", "entries"),
    "ordergate_waiting_entries": ("The lag: entries that no worker has read.", "waiting"),
    "ordergate_pending_entries": ("Entries read and not acknowledged.", "pending"),
    "ordergate_lost_entries": ("Entries trimmed or deleted before they were read.", "lost"),
    "ordergate_dead_letters": ("Dead letters of the stream.", "dead_letters"),
}


def _streams(gauges: Gauges) -> Iterator[Metric]:
    for name, (says, attribute) in STREAM_GAUGES.items():
        values = {s: getattr(figures, attribute) for s, figures in gauges.streams.items()}
        yield _gauge(name, says, values)
    yield _gauge(
        "ordergate_lag_seconds",
        "Age of the oldest entry that no worker has read; 0 for none.",
        {stream: figures.lag_ms / 1000 for stream, figures in gauges.streams.items()},
    )
    yield _gauge(
        "ordergate_oldest_pending_seconds",
        "Age of the oldest entry that is read and not acknowledged; 0 for none.",
        {stream: _oldest_s(figures) for stream, figures in gauges.streams.items()},
    )


def _oldest_s(figures: StreamFigures) -> float:
    return figures.oldest.age_ms / 1000 if figures.oldest else 0.0


def _points(gauges: Gauges) -> Iterator[Metric]:
    points = gauges.points
    yield _gauge(
        "ordergate_points_owed",
        "Points that InfluxDB does not have yet.",
        {stream: its.owed for stream, its in points.items()},
    )
    yield _gauge(
        "ordergate_points_parked",
        "Points that InfluxDB refused for good.",
        {stream: its.parked for stream, its in points.items()},
    )


def _gauge(name: str, says: str, values: Mapping[str, float | None]) -> Metric:
    gauge = GaugeMetricFamily(name, says, labels=("stream",))
    for stream, value in values.items():
        if value is not None:
            gauge.add_metric((stream,), value)
    return gauge


def _build(vitals: Vitals) -> Metric:
    told = {
        "version": __version__,
        "python": platform.python_version(),
        "group": vitals.settings.group,
        "consumer": vitals.settings.consumer,
    }
    return InfoMetricFamily("ordergate_build", "This worker.", value=told)
