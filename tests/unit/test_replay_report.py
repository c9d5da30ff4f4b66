"""The parts of a replay's report: scales and ticks, how numbers read, what is escaped, what is read back."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import Element

import msgspec
import pytest

from scripts.replay.pictures import charts, figures, files
from scripts.replay.pictures.charts import Bar, Chart, Line, Step
from scripts.replay.pictures.comparison import Named, comparison_page, ratios
from scripts.replay.pictures.figures import (
    DISTANCE_BOUNDS_MS,
    LATENCY_BOUNDS_MS,
    Bucket,
    Clocks,
    CodeCount,
    Counts,
    Figures,
    FiguresUnreadable,
    Latency,
    Percentiles,
    Result,
    Run,
    Slice,
    SlowEntry,
    Timeline,
    as_json,
    bucket_edges,
    from_json,
)
from scripts.replay.pictures.markup import document, tag
from scripts.replay.pictures.page import page_of
from scripts.replay.pictures.scale import (
    SLICES_MAX,
    Scale,
    count_text,
    duration_text,
    latency_text,
    log_ticks,
    log_ticks_around,
    nice,
    ratio_text,
    short_text,
    slice_ms,
    ticks,
    time_ticks,
)

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror='alert(1)'>\"&amp;"
DOCS = Path(__file__).resolve().parents[2] / "docs/operations/replay-report.md"


# --- scales and ticks ---


def test_a_scale_maps_its_ends_and_keeps_what_lies_beyond_at_the_edge() -> None:
    scale = Scale(0, 50, 100, 0)
    assert [scale(value) for value in (0, 10, 50, 60, -1)] == [100, 80, 0, 0, 100]


def test_a_scale_by_magnitude_gives_each_factor_of_ten_the_same_room() -> None:
    scale = Scale(1, 1000, 0, 30, log=True)
    assert [scale(value) for value in (1, 10, 100, 1000, 0, -5)] == [0, 10, 20, 30, 0, 0]


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (0, [0, 1]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (10, [0, 2, 4, 6, 8, 10]),
        (11, [0, 5, 10, 15]),
        (0.3, [0, 0.1, 0.2, 0.3]),
        (24_894, [0, 5000, 10_000, 15_000, 20_000, 25_000]),
        (1e9, [0, 2e8, 4e8, 6e8, 8e8, 1e9]),
    ],
)
def test_ticks_are_round_and_reach_the_highest_value(high: float, expected: list[float]) -> None:
    assert ticks(high, 6) == expected


@pytest.mark.parametrize("exponent", range(-3, 10))
def test_ticks_are_never_too_many_nor_too_low(exponent: int) -> None:
    for digits in range(100, 1000, 7):
        high = digits * 10.0 ** (exponent - 2)
        found = ticks(high, 6)
        assert 2 <= len(found) <= 6
        assert found[-1] >= high * (1 - 1e-9)
        assert found[-2] < high


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), (1.1, 2), (2, 2), (4.9, 5), (5.1, 10), (0.03, 0.05), (700, 1000)],
)
def test_nice_is_the_next_of_1_2_5(value: float, expected: float) -> None:
    assert nice(value) == pytest.approx(expected)


def test_ticks_by_magnitude_thin_out_where_they_are_many() -> None:
    assert log_ticks(1, 100) == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert log_ticks(1, 1e6) == pytest.approx([1, 10, 100, 1000, 1e4, 1e5, 1e6])


@pytest.mark.parametrize("lowest", [0.5, 1, 1.05, 83.0, 6000])
@pytest.mark.parametrize("factor", [1, 1.001, 7, 100, 12_345])
def test_ticks_around_values_hold_them_all(lowest: float, factor: float) -> None:
    found = log_ticks_around(lowest, lowest * factor)
    assert len(found) >= 2
    assert found == sorted(set(found))
    assert found[0] <= lowest * (1 + 1e-9)
    assert found[-1] >= lowest * factor * (1 - 1e-9)


@pytest.mark.parametrize(
    ("high_ms", "expected"),
    [
        (5, [0]),
        (400, [0, 100, 200, 300, 400]),
        (8400, [0, 2000, 4000, 6000, 8000]),
        (3_600_000, [0, 900_000, 1_800_000, 2_700_000, 3_600_000]),
        (
            10 * 86_400_000,
            [0, 2 * 86_400_000, 4 * 86_400_000, 6 * 86_400_000, 8 * 86_400_000, 864e6],
        ),
    ],
)
def test_ticks_of_time_stand_at_times_that_people_count_in(
    high_ms: float, expected: list[float]
) -> None:
    assert time_ticks(high_ms, 6) == expected


@pytest.mark.parametrize("span_ms", [0, 0.4, 9, 10, 599, 600.5, 59_999, 3.6e6, 1e9, 4e11])
@pytest.mark.parametrize("entries", [1, 70, 25_000, 10_000_000])
def test_slices_hold_any_span_and_are_never_too_many(span_ms: float, entries: int) -> None:
    count = int(span_ms // slice_ms(span_ms, entries)) + 1
    assert count <= min(SLICES_MAX, max(10, entries // 1000))


@pytest.mark.parametrize("bounds", [LATENCY_BOUNDS_MS, DISTANCE_BOUNDS_MS])
def test_bounds_of_buckets_grow(bounds: tuple[float, ...]) -> None:
    assert all(1 < high / low <= 10 for low, high in pairwise(bounds))


# --- how numbers read ---


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [
        (0, "0 ms"), (0.0699, "0.0699 ms"), (1, "1 ms"), (12.345, "12.3 ms"), (254.42, "254.4 ms"),
        (-40, "-40 ms"), (1000, "1 s"), (1500, "1.5 s"), (90_000, "1.5 min"), (86_400_000, "1 d"),
        (3_600_000_000, "41.7 d"), (999.97, "1,000 ms"),
    ],
)  # fmt: skip
def test_durations_have_three_digits_and_the_unit_that_fits(value_ms: float, text: str) -> None:
    assert duration_text(value_ms) == text


def test_latencies_stay_in_seconds() -> None:
    assert [latency_text(it) for it in (82_035.3, 3_600_000, 12.3)] == [
        "82 s",
        "3,600 s",
        "12.3 ms",
    ]


def test_other_numbers_read_as_people_write_them() -> None:
    assert [short_text(it) for it in (0, 0.5, 950, 1500, 2e7, 3e9)] == [
        "0",
        "0.5",
        "950",
        "1.5k",
        "20M",
        "3G",
    ]
    assert count_text(1234567.4) == "1,234,567"
    assert ratio_text(1.2345) == "1.23 \N{MULTIPLICATION SIGN}"
    assert ratio_text(None) == "\N{EN DASH}"


# --- markup ---


class Seen(HTMLParser):
    """The elements and texts that a browser sees."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_texts_and_attributes_are_escaped_wherever_they_stand() -> None:
    seen = Seen(document(HOSTILE, "", tag("p", HOSTILE, tag("b", HOSTILE), HOSTILE, title=HOSTILE)))
    assert seen.tags == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "p", "b"]
    assert seen.texts.count(HOSTILE) == 4
    assert ("title", HOSTILE) in seen.attributes


def test_a_page_may_load_and_run_nothing() -> None:
    seen = Seen(document("", "", None))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in seen.attributes


# --- charts ---


def paths(figure: Element, style: str) -> list[str]:
    return [it.attrib["d"] for it in figure.iter("path") if it.attrib["class"] == style]


def test_a_line_has_gaps_where_values_are_missing_and_a_dash_for_one_alone() -> None:
    points = [(0.0, 0.0), (10.0, 5.0), (20.0, None), (30.0, 10.0), (40.0, None)]
    axis = charts.linear_axis(10, short_text)
    figure = charts.lines(Chart("T", "D"), [Line("a", "s1", points)], axis, 40)
    assert paths(figure, "line s1") == ["M62 214L173.5 114M396.5 14m-3 0h6"]


def test_a_distribution_stands_between_its_edges_by_magnitude() -> None:
    axis = charts.linear_axis(1, share)
    figure = charts.steps(Chart("T", "D"), [Step("a", "s1", [1.0, 0.5])], [1, 10, 100], axis)
    assert paths(figure, "area s1") == ["M62 214V14H285V114H508V214Z"]


def share(value: float) -> str:
    return f"{value:.0%}"


def test_bars_are_as_long_as_their_values_and_none_for_zero() -> None:
    rows = [(name, [Bar("s1", value, "")]) for name, value in (("a", 10), ("b", 5), ("c", 0))]
    figure = charts.bars(Chart("T", "D"), rows)
    assert [float(bar.attrib["width"]) for bar in figure.iter("rect")] == [240, 120, 0]


def test_every_picture_has_a_title_and_a_description_that_it_names() -> None:
    for page in (page_of(run_of()), comparison_page(Named("a", run_of()), Named("b", run_of()))):
        seen = Seen(page)
        assert seen.tags.count("figure") >= 4
        ids = [value for name, value in seen.attributes if name == "id"]
        named = {v for k, v in seen.attributes if k in ("aria-labelledby", "aria-describedby")}
        assert len(ids) == len(set(ids)) == 2 * seen.tags.count("figure")
        assert named == set(ids)


# --- pages ---


def run_of(*, timed: bool = True, text: str = "text", entries: int = 3) -> Figures:
    """The figures of a small run, every text of it the same."""
    percentiles = Percentiles(*map(float, range(1, 8)))
    edges = bucket_edges(LATENCY_BOUNDS_MS, None)
    buckets = [Bucket(*it, entries if it[0] == 10 else 0) for it in edges]
    slices = [
        Slice(0, entries, 0, entries, percentiles),
        Slice(10, 0, entries, 0, None),
    ]
    began_at = datetime(2026, 1, 1, tzinfo=UTC)
    counts = Counts(entries - 2, 1, 1)
    return Figures(
        version=figures.VERSION,
        run=Run(
            text, text, text, not timed, 1000, began_at, entries, text, text, 0.1, 30, text, text
        ),
        result=Result(True, counts, counts, 0, 0, 0, entries, 0.2, 15, [CodeCount(text, 1)]),
        clocks=Clocks(0.1, 0.2) if timed else None,
        latency=Latency(entries, 5, percentiles, buckets) if timed else None,
        latency_omitted=None if timed else text,
        timeline=Timeline(10, slices),
        distances=[Bucket(*it, int(it[0] == 1000)) for it in bucket_edges(DISTANCE_BOUNDS_MS, 0)],
        slowest=[SlowEntry(text, 1, 7, text, text, text, text, None)] if timed else [],
    )


def test_no_text_of_a_run_becomes_an_element_of_its_page() -> None:
    plain, hostile = Seen(page_of(run_of())), Seen(page_of(run_of(text=HOSTILE)))
    assert hostile.tags == plain.tags
    assert HOSTILE in hostile.texts
    assert "script" not in plain.tags


def test_no_text_of_two_runs_becomes_an_element_of_their_page() -> None:
    both = [Named("a", run_of()), Named("b", run_of())]
    bad = [Named(HOSTILE, run_of(text=HOSTILE)), Named(HOSTILE, run_of(text=HOSTILE))]
    assert Seen(comparison_page(*bad)).tags == Seen(comparison_page(*both)).tags


def test_pages_load_nothing() -> None:
    both = comparison_page(Named("a", run_of()), Named("b", run_of()))
    for page in (page_of(run_of()), both):
        names = {name for name, _ in Seen(page).attributes}
        assert names.isdisjoint({"src", "href", "srcset", "action", "onload"})
        assert b"url(" not in page
        assert b"@import" not in page


def test_what_was_not_measured_is_said_and_leaves_no_chart_behind() -> None:
    page = page_of(run_of(timed=False, text="no reason")).decode()
    assert "Not measured: no reason." in page
    assert "Distribution of latency" not in page
    assert "Waiting" not in page


def test_a_run_in_which_nothing_was_recorded_has_a_page() -> None:
    none = [Bucket(*it, 0) for it in bucket_edges(DISTANCE_BOUNDS_MS, 0)]
    timeline = Timeline(10, [])
    empty = msgspec.structs.replace(run_of(timed=False), timeline=timeline, distances=none)
    assert "Nothing was recorded in this run." in page_of(empty).decode()
    comparison_page(Named("a", empty), Named("b", run_of()))
    comparison_page(Named("a", empty), Named("b", empty))


@pytest.mark.parametrize(
    ("clocks", "words"),
    [
        (Clocks(0.5, 0.2), "clocks agree"),
        (
            Clocks(40, 0.2),
            "40 ms (\N{PLUS-MINUS SIGN}0.2 ms) ahead of Redis' at the end: each latency is so much too long",
        ),
        (
            Clocks(-2000, 1),
            "2 s (\N{PLUS-MINUS SIGN}1 ms) behind Redis' at the end: each latency is so much too short",
        ),
    ],
)
def test_what_clocks_do_to_latencies_is_said(clocks: Clocks, words: str) -> None:
    page = page_of(msgspec.structs.replace(run_of(), clocks=clocks)).decode()
    assert words in page
    assert ("The clocks differ." in page) is not clocks.agree


# --- comparison ---


def test_ratios_are_the_second_for_each_of_the_first() -> None:
    found = {it.name: it.ratio for it in ratios(run_of(entries=4), run_of(entries=6))}
    assert found["entries"] == 1.5
    assert found["accepted"] == 2
    assert found["latency p50"] == 1
    assert found["missing"] is None  # of nothing


def test_without_latencies_in_one_run_there_are_no_ratios_of_them() -> None:
    found = {it.name: it for it in ratios(run_of(), run_of(timed=False))}
    assert found["latency p99"].first == 5
    assert found["latency p99"].ratio is None
    page = comparison_page(Named("a", run_of()), Named("b", run_of(timed=False))).decode()
    assert "Distribution of latency" in page


def test_runs_that_cannot_be_compared_are_told_apart() -> None:
    equal = comparison_page(Named("a", run_of()), Named("b", run_of())).decode()
    assert "the same source, pace, window and servers" in equal
    other = msgspec.structs.replace(run_of().run, window_ms=5)
    differs = msgspec.structs.replace(run_of(), run=other)
    page = comparison_page(Named("a", run_of()), Named("b", differs)).decode()
    assert "they differ in window." in page


# --- figures as JSON ---


def test_figures_are_read_back_as_they_were() -> None:
    assert from_json(as_json(run_of())) == run_of()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "no figures of a replay"),
        (b"\xff", "no figures of a replay"),
        (b"{}", "no figures of a replay"),
        (b'{"version": 2}', "of version 2, and only 1 can be read"),
        (b'{"version": 1}', "no figures of a replay"),
        (as_json(run_of()).replace(b'"entries": 3', b'"entries": "3"'), "Expected `int`"),
        (as_json(run_of()).replace(b'"entries": 3', b'"entries": 0'), "Expected `int` >= 1"),
        (as_json(run_of()).replace(b'"to_ms": 10000.0', b'"to_ms": 10001.0'), "other bounds"),
        (as_json(run_of()).replace(b'"slice_ms": 10', b'"slice_ms": 0'), "Expected `int` >= 1"),
        (as_json(run_of()).replace(b'"mean_ms": 5', b'"mean_ms": 1e999'), "out of range"),
    ],
)
def test_what_is_no_figures_is_refused(text: bytes, complaint: str) -> None:
    with pytest.raises(FiguresUnreadable, match=re.escape(complaint)):
        from_json(text)


def test_a_report_is_replaced_as_a_whole(tmp_path: Path) -> None:
    files.write(tmp_path / "a/b", run_of(entries=3))
    page = files.write(tmp_path / "a/b", run_of(entries=5))
    assert files.read(tmp_path / "a/b") == run_of(entries=5)
    assert page.read_bytes() == page_of(run_of(entries=5))
    assert sorted(it.name for it in page.parent.iterdir()) == ["figures.json", "report.html"]


def test_reports_are_named_by_directory_and_by_path_where_names_are_equal(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/run", "b/run", "c")]
    for path in paths:
        files.write(path, run_of())
    assert [it.name for it in files.named(paths[0], paths[2])] == ["run", "c"]
    assert [it.name for it in files.named(paths[0], paths[1])] == [str(paths[0]), str(paths[1])]


# --- docs ---


def test_every_name_in_the_figures_is_explained() -> None:
    explained = set(re.findall(r"`([a-z0-9_.]+)`", DOCS.read_text(encoding="utf-8")))
    assert names_in(json.loads(as_json(run_of()))) <= explained


def names_in(value: object) -> set[str]:
    """The names of all objects in a JSON value."""
    if isinstance(value, list):
        return {name for it in cast("list[object]", value) for name in names_in(it)}
    if isinstance(value, dict):
        found = cast("dict[str, object]", value)
        return {*found, *(name for it in found.values() for name in names_in(it))}
    return set()
