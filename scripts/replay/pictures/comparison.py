"""Two reports side by side: their figures, the ratios of these, and charts that hold both."""

import json
from collections.abc import Callable, Iterator, Sequence
from operator import add
from typing import NamedTuple
from xml.etree.ElementTree import Element

from scripts.replay.pictures import charts
from scripts.replay.pictures.charts import Bar, Chart, Line, Step
from scripts.replay.pictures.figures import Bucket, Figures, Latency
from scripts.replay.pictures.markup import Child, document, tag
from scripts.replay.pictures.page import (
    MEASURED,
    OUTCOMES,
    STYLE,
    bounded,
    bucket_text,
    clocks_words,
    highest_of,
    latencies,
    latency_axis,
    rates,
    redis_text,
    share_text,
    span_ms,
)
from scripts.replay.pictures.scale import (
    NOTHING,
    count_text,
    duration_text,
    latency_text,
    ratio_text,
    short_text,
)
from scripts.replay.pictures.tables import table

STYLES = ("s1", "s2")  #: of the first report and the second


class Named(NamedTuple):
    """A report under the name it has in a comparison."""

    name: str
    figures: Figures


class Ratio(NamedTuple):
    """One figure of both reports; None where a report lacks it."""

    name: str
    first: float | None
    second: float | None
    text: Callable[[float], str]

    @property
    def ratio(self) -> float | None:
        """The second for each one of the first."""
        if self.first is None or self.second is None or not self.first:
            return None
        return self.second / self.first

    def cells(self) -> list[str]:
        """As a row of a table."""
        values = (self.first, self.second)
        texts = [NOTHING if value is None else self.text(value) for value in values]
        return [self.name, *texts, ratio_text(self.ratio)]


def ratios(first: Figures, second: Figures) -> list[Ratio]:
    """What one compares, by name."""
    pairs = zip(_measures(first), _measures(second), strict=True)
    return [Ratio(name, one, other, text) for (name, one, text), (_, other, _) in pairs]


def ratios_text(first: str, second: str, found: Sequence[Ratio]) -> str:
    """A table for a terminal."""
    rows = [["", first, second, "ratio"], *(ratio.cells() for ratio in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    names = (f"{row[0]:{widths[0]}}" for row in rows)
    values = (
        "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
    return "\n".join(map(add, names, values))


def ratios_json(found: Sequence[Ratio]) -> str:
    """One JSON object: by name, both figures and their ratio; latencies are milliseconds."""
    keys = ("first", "second", "ratio")
    rows = {it.name: dict(zip(keys, (it.first, it.second, it.ratio), strict=True)) for it in found}
    return json.dumps(rows)


def _measures(figures: Figures) -> Iterator[tuple[str, float | None, Callable[[float], str]]]:
    yield "entries", figures.run.entries, count_text
    yield "recorded per second", figures.result.recorded_per_second, count_text
    yield "published per second", figures.run.published_per_second, count_text
    latency = figures.latency
    yield "latency mean", latency.mean_ms if latency else None, latency_text
    for name in ("min", "p50", "p90", "p95", "p99", "p999", "max"):
        value = getattr(latency.percentiles_ms, name) if latency else None
        yield f"latency {name.replace('p999', 'p99.9')}", value, latency_text
    for name, _ in OUTCOMES:
        yield name, getattr(figures.result.found, name), count_text
    yield "missing", figures.result.missing, count_text


def comparison_page(first: Named, second: Named) -> bytes:
    """The whole page, as HTML."""
    both = (first, second)
    title = f"{first.name} and {second.name}"
    body = tag(
        "main",
        tag("header", tag("h1", "Replays side by side: ", title), _intro(both)),
        tag("section", tag("h2", "Figures"), _ratios(both), _conditions(both)),
        tag("section", tag("h2", "Pictures"), tag("div", *_charts(both), class_="charts")),
        tag("section", tag("h2", "What latency is"), tag("p", MEASURED), *_clocks(both)),
    )
    return document(f"Replays: {title}", STYLE, body)


def _intro(both: Sequence[Named]) -> Element:
    differ = [name for name, one, other in _of_runs(both) if one != other]
    if not differ:
        return tag("p", "Both runs had the same source, pace, window and servers.")
    words = f"These were not equal runs; they differ in {', '.join(differ)}."
    return tag("p", words, class_="warning")


def _ratios(both: Sequence[Named]) -> Element:
    first, second = both
    rows = [ratio.cells() for ratio in ratios(first.figures, second.figures)]
    return table(("figure", first.name, second.name, "second / first"), rows)


def _conditions(both: Sequence[Named]) -> Element:
    first, second = both
    head = ("condition", first.name, second.name)
    return table(head, _of_runs(both), texts=(1, 2))


def _of_runs(both: Sequence[Named]) -> list[list[str]]:
    """Name and both values of what should be equal in two runs."""
    names = ("source", "pace", "window", "Redis", "Postgres")
    columns = [_conditions_of(it.figures) for it in both]
    return [list(row) for row in zip(names, *columns, strict=True)]


def _conditions_of(figures: Figures) -> tuple[str, ...]:
    run = figures.run
    pace = f"{run.pace}, with the orders' own times as ids" if run.event_time else run.pace
    return run.source, pace, duration_text(run.window_ms), redis_text(run), run.postgres_version


def _clocks(both: Sequence[Named]) -> Iterator[Child]:
    for it in both:
        if it.figures.latency:
            yield tag("h3", it.name)
            yield clocks_words(it.figures.clocks)


# --- charts ---


def _charts(both: Sequence[Named]) -> Iterator[Element]:
    yield _throughput(both)
    measured = [(it.name, it.figures.latency) for it in both if it.figures.latency]
    if measured:
        yield _latency_over_time(both)
        yield _distribution(measured)
    yield _distances(both)


def _throughput(both: Sequence[Named]) -> Element:
    series = [
        Line(it.name, style, rates(line.slices, line.slice_ms, "recorded"))
        for it, style in zip(both, STYLES, strict=True)
        for line in [it.figures.timeline]
    ]
    highest = highest_of(series)
    chart = Chart(
        "Recorded per second",
        f"Entries recorded per second since each began to publish; at most {count_text(highest)}.",
        "since each began to publish",
    )
    return charts.lines(chart, series, charts.linear_axis(highest, short_text), _span(both))


def _span(both: Sequence[Named]) -> float:
    return max(*(span_ms(it.figures) for it in both), 1.0)


def _latency_over_time(both: Sequence[Named]) -> Element:
    series = [
        Line(f"{it.name} {name}", f"{style}{more}", latencies(line.slices, line.slice_ms, name))
        for it, style in zip(both, STYLES, strict=True)
        for line in [it.figures.timeline]
        for name, more in (("p50", ""), ("p99", " dashed"))
    ]
    chart = Chart(
        "Latency over time",
        f"Percentiles of both on a scale by magnitude; at most {latency_text(highest_of(series))}.",
    )
    return charts.lines(chart, series, latency_axis(series), _span(both))


def _distribution(measured: Sequence[tuple[str, Latency]]) -> Element:
    first, last = _used([latency.buckets for _, latency in measured])
    used = [latency.buckets[first:last] for _, latency in measured]
    series = [
        Step(name, style, [bucket.count / latency.count for bucket in buckets])
        for (name, latency), style, buckets in zip(measured, STYLES, used, strict=False)
    ]
    highest = max(max(step.heights) for step in series)
    halves = [f"{latency_text(it.percentiles_ms.p50)} in {name}" for name, it in measured]
    chart = Chart(
        "Distribution of latency",
        f"Half of the entries took at most {' and '.join(halves)}.",
        "share of entries",
    )
    axis = charts.linear_axis(highest, share_text)
    return charts.steps(chart, series, bounded(used[0])[1], axis)


def _used(sets: Sequence[Sequence[Bucket]]) -> tuple[int, int]:
    """From where to where any of these equal sets of buckets holds something."""
    places = [n for buckets in sets for n, bucket in enumerate(buckets) if bucket.count]
    return (min(places), max(places) + 1) if places else (0, 1)


def _distances(both: Sequence[Named]) -> Element:
    sets = [it.figures.distances for it in both]
    first, last = _used(sets)
    rows = [
        (bucket_text(buckets[0], duration_text), _bars([bucket.count for bucket in buckets]))
        for buckets in zip(*(it[first:last] for it in sets), strict=True)
    ]
    chart = Chart(
        "Duplicates by distance from their original",
        "Duplicates of both by distance from their original.",
    )
    return charts.bars(chart, rows, _names(both))


def _bars(values: Sequence[int]) -> list[Bar]:
    return [
        Bar(style, value, count_text(value)) for style, value in zip(STYLES, values, strict=True)
    ]


def _names(both: Sequence[Named]) -> list[tuple[str, str]]:
    return [(style, it.name) for style, it in zip(STYLES, both, strict=True)]
