"""The page of one replay."""

from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from itertools import dropwhile
from xml.etree.ElementTree import Element

from scripts.replay.pictures import charts
from scripts.replay.pictures.charts import Bar, Chart, Line, Mark, Step
from scripts.replay.pictures.figures import Bucket, Clocks, Counts, Figures, Latency, Run, Slice
from scripts.replay.pictures.markup import Child, document, tag
from scripts.replay.pictures.scale import (
    NOTHING,
    count_text,
    duration_text,
    latency_text,
    short_text,
)
from scripts.replay.pictures.tables import facts, folded, table

STYLE = (files("scripts.replay.pictures") / "page.css").read_text(encoding="utf-8")
LATENCY_MS_MIN = 0.5  #: entry ids have whole milliseconds; what lies below is drawn here
OUTCOMES = (("accepted", "accepted"), ("duplicates", "duplicate"), ("rejected", "rejected"))
MEASURED = """\
Latency is from the time in an entry's id, which Redis gave it at XADD in whole milliseconds, to its \
recorded_at, which Postgres' clock gave it in the transaction that recorded it. So the wait in the stream \
is part of it, and up to 1 ms that the id has lost; what that transaction's inserts and its commit took \
afterwards is not."""


def page_of(figures: Figures) -> bytes:
    """The whole page, as HTML."""
    run = figures.run
    body = tag(
        "main",
        tag("header", tag("h1", "Replay of ", tag("q", run.source)), _verdict(figures)),
        _tiles(figures),
        _over_time(figures),
        _latency(figures),
        _outcomes(figures),
        _slowest(figures) if figures.slowest else None,
        _run(figures),
    )
    return document(f"Replay: {run.source}", STYLE, body)


# --- the top ---


def _verdict(figures: Figures) -> Element:
    result = figures.result
    began = f"{figures.run.began_at:%Y-%m-%d %H:%M:%S} UTC, stream {figures.run.stream}. "
    if result.missing:
        words = ("bad", "Gave up", f"{result.missing:,} entries have no outcome.")
    elif result.as_expected:
        words = (
            "good",
            "As expected",
            "Each outcome was found as often as the source lets expect.",
        )
    else:
        words = ("bad", "Differs", "The outcomes are not those that the source lets expect.")
    style, word, sentence = words
    return tag("p", tag("strong", word, class_=f"verdict {style}"), " ", began, sentence)


def _tiles(figures: Figures) -> Element:
    result, latency = figures.result, figures.latency
    rate = result.recorded_per_second
    share = result.found.duplicates / figures.run.entries
    tiles = {
        "entries": count_text(figures.run.entries),
        "recorded": f"{count_text(rate)}/s" if rate else NOTHING,
        "latency p50": latency_text(latency.percentiles_ms.p50) if latency else NOTHING,
        "latency p99": latency_text(latency.percentiles_ms.p99) if latency else NOTHING,
        f"duplicates, {share:.1%}": count_text(result.found.duplicates),
        "rejected": count_text(result.found.rejected),
    }
    pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles.items())
    return tag("dl", *pairs, class_="tiles")


# --- throughput and latency over time ---


def _over_time(figures: Figures) -> Element:
    slices = figures.timeline.slices
    if not slices:
        return tag("section", tag("h2", "Over time"), tag("p", "Nothing was recorded in this run."))
    pictures = [_throughput(figures)]
    if not figures.run.event_time:
        pictures.append(_waiting(figures))
    return tag(
        "section",
        tag("h2", "Over time"),
        tag("p", _of_slices(figures)),
        tag("div", *pictures, class_="charts"),
        folded("Table: over time", table(*_slices_table(figures))),
    )


def _of_slices(figures: Figures) -> str:
    begin = f"Slices of {duration_text(figures.timeline.slice_ms)} since the publishing began. "
    if figures.run.event_time:
        return (
            begin
            + "When entries were published cannot be told: their ids are the orders' own times."
        )
    return (
        begin + "Entries count as published at the time in their ids, as recorded at recorded_at."
    )


def rates(slices: Sequence[Slice], slice_ms: int, name: str) -> list[tuple[float, float | None]]:
    """Entries per second in the middle of each slice; `name` is published or recorded."""
    return [
        (it.at_ms + slice_ms / 2, getattr(it, name) * 1000 / slice_ms)
        for it in slices
        if getattr(it, name) is not None
    ]


def span_ms(figures: Figures) -> float:
    """How long the timeline is."""
    return len(figures.timeline.slices) * figures.timeline.slice_ms


def _throughput(figures: Figures) -> Element:
    slices, length = figures.timeline.slices, figures.timeline.slice_ms
    series = [Line("recorded", "s1", rates(slices, length, "recorded"))]
    if not figures.run.event_time:
        series.insert(0, Line("published", "s0", rates(slices, length, "published")))
    highest = highest_of(series)
    chart = Chart(
        "Throughput",
        f"Entries per second over {duration_text(span_ms(figures))}; at most {count_text(highest)}. "
        "The table below has every slice.",
        "entries per second",
    )
    hints = (_hint(it, length) for it in slices)
    axis = charts.linear_axis(highest, short_text)
    return charts.lines(chart, series, axis, span_ms(figures), hints)


def highest_of(series: Iterable[Line]) -> float:
    """The highest value of some lines, 0 where there is none."""
    return max((value for line in series for _, value in line.points if value), default=0.0)


def _hint(it: Slice, length: int) -> str:
    words = [f"{duration_text(it.at_ms)} to {duration_text(it.at_ms + length)}"]
    if it.published is not None:
        words.append(f"published {count_text(it.published)}")
    words.append(f"recorded {count_text(it.recorded)}")
    if it.waiting is not None:
        words.append(f"waiting {count_text(it.waiting)}")
    if it.latency_ms:
        words.append(f"latency p50 {latency_text(it.latency_ms.p50)}")
        words.append(f"p99 {latency_text(it.latency_ms.p99)}")
    return "\n".join(words)


def _waiting(figures: Figures) -> Element:
    slices, length = figures.timeline.slices, figures.timeline.slice_ms
    points = [(float(it.at_ms + length), float(it.waiting or 0)) for it in slices]
    series = [Line("waiting", "s2", [(0.0, 0.0), *points])]
    highest = highest_of(series)
    chart = Chart(
        "Waiting",
        f"Entries published and not yet recorded, over time; at most {count_text(highest)}.",
        "entries published and not yet recorded",
    )
    hints = (_hint(it, length) for it in slices)
    axis = charts.linear_axis(max(highest, 5), short_text)
    return charts.lines(chart, series, axis, span_ms(figures), hints)


def _slices_table(figures: Figures) -> tuple[Sequence[str], list[list[str]]]:
    head = ["from", "published", "recorded", "waiting", "p50", "p95", "p99", "max"]
    rows = [[duration_text(it.at_ms), *_slice_cells(it)] for it in figures.timeline.slices]
    return head, rows


def _slice_cells(it: Slice) -> list[str]:
    counts = (it.published, it.recorded, it.waiting)
    found = it.latency_ms
    latencies = (found.p50, found.p95, found.p99, found.max) if found else (None,) * 4
    return [
        *(NOTHING if value is None else count_text(value) for value in counts),
        *(NOTHING if value is None else latency_text(value) for value in latencies),
    ]


# --- latency ---


def _latency(figures: Figures) -> Element:
    latency = figures.latency
    if latency is None:
        words = f"Not measured: {figures.latency_omitted}."
        return tag("section", tag("h2", "Latency"), tag("p", words))
    return tag(
        "section",
        tag("h2", "Latency"),
        tag("p", MEASURED),
        clocks_words(figures.clocks),
        tag("div", _latency_over_time(figures), _distribution(latency), class_="charts"),
        table(*_percentiles_table(latency)),
        folded(
            "Table: distribution", table(*_buckets_table(latency.buckets, "latency", latency_text))
        ),
    )


def clocks_words(clocks: Clocks | None) -> Element:
    """What the difference of the clocks means for the latencies."""
    if clocks is None:
        words = "Redis did not tell its time: whether both servers' clocks agree is not known."
        return tag("p", words, class_="warning")
    size = f"{duration_text(abs(clocks.difference_ms))} (±{duration_text(clocks.uncertainty_ms)})"
    if clocks.agree:
        return tag("p", f"Both servers' clocks agree: {size} between them, measured at the end.")
    ahead, change = ("ahead of", "long") if clocks.difference_ms > 0 else ("behind", "short")
    words = f"Postgres' clock was {size} {ahead} Redis' at the end: each latency is so much too {change}."
    return tag("p", tag("strong", "The clocks differ. "), words, class_="warning")


def _latency_over_time(figures: Figures) -> Element:
    slices, length = figures.timeline.slices, figures.timeline.slice_ms
    shown = (("p50", "s1"), ("p99", "s2"), ("max", "s3"))
    series = [Line(name, style, latencies(slices, length, name)) for name, style in shown]
    chart = Chart(
        "Latency over time",
        f"Percentiles of latency, by when entries were published, on a scale by magnitude; "
        f"at most {latency_text(highest_of(series))}.",
        "by time of publishing",
    )
    hints = (_hint(it, length) for it in slices)
    return charts.lines(chart, series, latency_axis(series), span_ms(figures), hints)


def latencies(
    slices: Sequence[Slice], slice_ms: int, name: str
) -> list[tuple[float, float | None]]:
    """One percentile in the middle of each slice, None where nothing was published in it."""
    return [
        (
            it.at_ms + slice_ms / 2,
            max(getattr(it.latency_ms, name), LATENCY_MS_MIN) if it.latency_ms else None,
        )
        for it in slices
    ]


def latency_axis(series: Iterable[Line]) -> charts.ValueAxis:
    """An axis by magnitude that holds all of some lines."""
    values = [value for line in series for _, value in line.points if value] or [1.0]
    return charts.log_axis(min(values), max(values), latency_text)


def _distribution(latency: Latency) -> Element:
    used, edges = bounded(trimmed(latency.buckets))
    shares = [bucket.count / latency.count for bucket in used]
    of = latency.percentiles_ms
    marks = [Mark(of.p50, "p50"), Mark(of.p95, "p95"), Mark(of.p99, "p99")]
    chart = Chart(
        "Distribution of latency",
        f"Half of {latency.count:,} entries took at most {latency_text(of.p50)}, 99 % at most "
        f"{latency_text(of.p99)}, the slowest {latency_text(of.max)}.",
        "share of entries",
    )
    hints = [
        f"{bucket_text(it, latency_text)}: {it.count:,}, {it.count / latency.count:.2%}"
        for it in used
    ]
    axis = charts.linear_axis(max(shares), share_text)
    series = [Step("entries", "s1", shares)]
    return charts.steps(chart, series, edges, axis, marks, hints)


def trimmed(buckets: Sequence[Bucket]) -> list[Bucket]:
    """The buckets from the first that holds something to the last."""
    begun = list(dropwhile(lambda bucket: not bucket.count, buckets))
    return list(dropwhile(lambda bucket: not bucket.count, begun[::-1]))[::-1]


def bounded(buckets: Sequence[Bucket]) -> tuple[Sequence[Bucket], list[float]]:
    """Buckets and their edges; an open one is drawn half as wide or twice as wide as its bound."""
    first, last = buckets[0], buckets[-1]
    low = first.from_ms or (first.to_ms or 1) / 2
    edges = [low, *(bucket.to_ms for bucket in buckets[:-1] if bucket.to_ms)]
    return buckets, [*edges, last.to_ms or edges[-1] * 2]


def share_text(share: float) -> str:
    """A share as percent."""
    return f"{share * 100:.3g}%"


def bucket_text(bucket: Bucket, text: Callable[[float], str]) -> str:
    """`10 ms to 15 ms`; `text` tells how its bounds read."""
    if not bucket.from_ms:
        return "same ms" if bucket.from_ms == 0 else f"below {text(bucket.to_ms or 0)}"
    if bucket.to_ms is None:
        return f"{text(bucket.from_ms)} or more"
    return f"{text(bucket.from_ms)} to {text(bucket.to_ms)}"


def _percentiles_table(latency: Latency) -> tuple[Sequence[str], list[list[str]]]:
    of = latency.percentiles_ms
    values = (of.min, of.p50, of.p90, of.p95, of.p99, of.p999, of.max, latency.mean_ms)
    head = ("percentile", "min", "p50", "p90", "p95", "p99", "p99.9", "max", "mean")
    return head, [["latency", *(latency_text(value) for value in values)]]


def _buckets_table(
    buckets: Sequence[Bucket], name: str, text: Callable[[float], str]
) -> tuple[Sequence[str], list[list[str]]]:
    total = sum(bucket.count for bucket in buckets)
    rows = [
        [bucket_text(it, text), count_text(it.count), f"{it.count / total:.2%}"]
        for it in trimmed(buckets)
    ]
    return (name, "entries", "share"), rows


# --- outcomes ---


def _outcomes(figures: Figures) -> Element:
    result = figures.result
    return tag(
        "section",
        tag("h2", "Outcomes"),
        tag("div", _outcome_bars(result.found), _distances(figures.distances), class_="charts"),
        tag("div", *_outcome_tables(figures), class_="tables"),
    )


def _outcome_bars(found: Counts) -> Element:
    total = max(found.accepted + found.duplicates + found.rejected, 1)
    rows = [
        (name, [Bar(style, value, f"{value:,} · {value / total:.1%}")])
        for name, style in OUTCOMES
        for value in [getattr(found, name)]
    ]
    words = ", ".join(f"{bars[0].value:,.0f} {name}" for name, bars in rows)
    return charts.bars(Chart("What became of the entries", f"{words}."), rows)


def _distances(distances: Sequence[Bucket]) -> Element | None:
    used = trimmed(distances)
    if not used:
        return None
    rows = [
        (bucket_text(it, duration_text), [Bar("duplicate", it.count, count_text(it.count))])
        for it in used
    ]
    most = max(used, key=lambda bucket: bucket.count)
    chart = Chart(
        "Duplicates by distance from their original",
        f"Most, {most.count:,}, lie {bucket_text(most, duration_text)} from the order that they repeat.",
        "by the times of both entries",
    )
    return charts.bars(chart, rows)


def _outcome_tables(figures: Figures) -> Iterable[Element]:
    result = figures.result
    rows = [
        [name, count_text(getattr(result.expected, name)), count_text(getattr(result.found, name))]
        for name, _ in OUTCOMES
    ]
    yield table(("outcome", "expected", "found"), [*rows, ["missing", "0", f"{result.missing:,}"]])
    if result.rejections:
        codes = [[it.code, count_text(it.count)] for it in result.rejections]
        yield table(("code of rejection", "entries"), codes)
    if trimmed(figures.distances):
        yield table(*_buckets_table(figures.distances, "distance from the original", duration_text))


# --- the rest ---


def _slowest(figures: Figures) -> Element:
    head = ("entry", "published at", "latency", "outcome", "order", "symbol", "repeats, or code")
    rows = [
        [
            it.entry_id,
            duration_text(it.at_ms),
            latency_text(it.latency_ms),
            it.outcome,
            it.order_id or NOTHING,
            it.symbol or NOTHING,
            it.original_entry_id or it.code or NOTHING,
        ]
        for it in figures.slowest
    ]
    return tag("section", tag("h2", "Slowest entries"), table(head, rows, texts=(3, 4, 5, 6)))


def _run(figures: Figures) -> Element:
    run, result = figures.run, figures.result
    pairs: list[tuple[str, Child]] = [
        ("source", run.source),
        ("pace", run.pace),
        ("stream", run.stream),
        ("entries", f"{run.first_entry_id} to {run.last_entry_id}"),
        ("published in", f"{run.published_seconds:,.2f} s, {run.published_per_second:,.0f}/s"),
        ("recorded in", _recorded_in(figures)),
        ("dedupe window", duration_text(run.window_ms)),
        ("repeats of earlier orders", count_text(result.repeats_of_earlier_orders)),
        ("on record before", count_text(result.recorded_before)),
        ("servers", f"{redis_text(run)}, Postgres {run.postgres_version}"),
    ]
    return tag("section", tag("h2", "The run"), facts(pairs))


def redis_text(run: Run) -> str:
    """Redis' version, as far as it is known."""
    return run.redis_version or "Redis, which did not tell its version"


def _recorded_in(figures: Figures) -> str:
    seconds, rate = figures.result.recorded_seconds, figures.result.recorded_per_second
    if seconds is None or rate is None:
        return NOTHING
    return f"{seconds:,.2f} s from the first publishing, {rate:,.0f}/s"
