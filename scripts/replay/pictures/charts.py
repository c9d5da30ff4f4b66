"""Three kinds of charts as inline SVG: lines over time, a distribution by magnitude, and bars.

Colours and sizes of text are the style sheet's, by class: one chart serves light, dark and phones. Each has
a title and a description for those who cannot see it, and says its values where a pointer rests.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element

from scripts.replay.pictures.markup import append, tag
from scripts.replay.pictures.scale import (
    Scale,
    duration_text,
    latency_text,
    log_ticks,
    log_ticks_around,
    ticks,
    time_ticks,
)

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 508, 14, 214  #: where the plot lies
ROW, BAR, LABELS = 9, 18, 150  #: bars: between rows, of one bar, and the width for labels


@dataclass(frozen=True, slots=True)
class Chart:
    """What stands around a chart. Titles differ in a page; `description` says in a sentence what one sees."""

    title: str
    description: str
    note: str = ""


class Line(NamedTuple):
    """A series over time, with gaps where the value is None. `style` is a class of the style sheet."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]


class Step(NamedTuple):
    """A series of a distribution: the height between each two edges."""

    name: str
    style: str
    heights: Sequence[float]


class Bar(NamedTuple):
    """One bar, and how its value reads."""

    style: str
    value: float
    text: str


class Mark(NamedTuple):
    """A place on the axis of a distribution that has a name."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class ValueAxis:
    """The vertical axis: its values, and how they read."""

    values: Sequence[float]
    text: Callable[[float], str]
    log: bool = False


def linear_axis(highest: float, text: Callable[[float], str]) -> ValueAxis:
    """An axis from zero to at least the highest value."""
    return ValueAxis(ticks(highest, 6), text)


def log_axis(lowest: float, highest: float, text: Callable[[float], str]) -> ValueAxis:
    """An axis by magnitude, from a tick below the lowest to one above the highest, both above zero."""
    return ValueAxis(log_ticks_around(lowest, highest), text, log=True)


def lines(
    chart: Chart, series: Sequence[Line], axis: ValueAxis, span_ms: float, hints: Iterable[str] = ()
) -> Element:
    """Lines over time from 0 to `span_ms`. `hints` are texts for equal slices of the span."""
    x = Scale(0, span_ms, LEFT, RIGHT)
    y = Scale(axis.values[0], axis.values[-1], BOTTOM, TOP, axis.log)
    svg = _svg(chart, HEIGHT)
    append(svg, *_value_lines(axis, y))
    append(svg, *(_tick(x(at), duration_text(at) if at else "0") for at in time_ticks(span_ms, 6)))
    for line in series:
        append(svg, tag("path", class_=f"line {line.style}", d=_path(line.points, x, y)))
    append(svg, *_hints(list(hints)))
    return _figure(chart, svg, [(line.style, line.name) for line in series])


def steps(
    chart: Chart,
    series: Sequence[Step],
    edges: Sequence[float],
    axis: ValueAxis,
    marks: Sequence[Mark] = (),
    hints: Sequence[str] = (),
) -> Element:
    """Distributions over an axis by magnitude, their heights between the same edges, in milliseconds."""
    x = Scale(edges[0], edges[-1], LEFT, RIGHT, log=True)
    y = Scale(axis.values[0], axis.values[-1], BOTTOM, TOP)
    svg = _svg(chart, HEIGHT)
    append(svg, *_value_lines(axis, y))
    append(svg, *(_tick(x(at), latency_text(at)) for at in log_ticks(edges[0], edges[-1])))
    for step in series:
        append(svg, tag("path", class_=f"area {step.style}", d=_stairs(step.heights, edges, x, y)))
    append(svg, *(_mark(x(mark.at), mark.name, n) for n, mark in enumerate(marks)))
    places = [x(edge) for edge in edges]
    append(svg, *(_hint(*at, text) for at, text in zip(pairwise(places), hints, strict=False)))
    return _figure(chart, svg, [(step.style, step.name) for step in series])


def bars(
    chart: Chart, rows: Sequence[tuple[str, Sequence[Bar]]], names: Sequence[tuple[str, str]] = ()
) -> Element:
    """Horizontal bars, one or more in a row. `names` is the legend: style and name."""
    highest = max((bar.value for _, row in rows for bar in row), default=0) or 1
    x = Scale(0, highest, LABELS, WIDTH - 130)
    svg = _svg(chart, sum(ROW + BAR * len(row) for _, row in rows) + 4)
    top = ROW / 2
    for label, row in rows:
        middle = top + BAR * len(row) / 2
        append(svg, tag("text", label, class_="label", x=LABELS - 10, y=middle, dy=".35em"))
        for n, bar in enumerate(row):
            append(svg, *_bar(bar, x, top + n * BAR))
        top += ROW + BAR * len(row)
    return _figure(chart, svg, names)


# --- parts ---


def _svg(chart: Chart, height: float) -> Element:
    name = re.sub(r"\W+", "-", chart.title.lower())
    title, description = f"{name}-title", f"{name}-description"
    return tag(
        "svg",
        tag("title", chart.title, id=title),
        tag("desc", chart.description, id=description),
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=title,
        aria_describedby=description,
    )


def _figure(chart: Chart, svg: Element, names: Sequence[tuple[str, str]]) -> Element:
    legend = tag("ul", *(tag("li", _swatch(style), name) for style, name in names), class_="legend")
    caption = tag(
        "figcaption",
        tag("h3", chart.title),
        tag("p", chart.note, class_="note") if chart.note else None,
        legend if len(names) > 1 else None,
    )
    return tag("figure", caption, svg)


def _swatch(style: str) -> Element:
    path = tag("path", class_=f"line {style}", d="M2 6H20")
    return tag("svg", path, viewBox="0 0 22 12", class_="swatch", aria_hidden="true")


def _value_lines(axis: ValueAxis, y: Scale) -> Iterable[Element]:
    for value in axis.values:
        at = y(value)
        yield tag("path", class_="grid", d=f"M{LEFT} {at:g}H{RIGHT}")
        yield tag("text", axis.text(value), class_="label", x=LEFT - 8, y=at, dy=".35em")


def _tick(at: float, text: str) -> Element:
    line = tag("path", class_="grid", d=f"M{at:g} {BOTTOM}v5")
    return tag("g", line, tag("text", text, class_="tick", x=at, y=BOTTOM + 22), class_="at")


def _path(points: Sequence[tuple[float, float | None]], x: Scale, y: Scale) -> str:
    """A line through the points; one that stands alone is a dash."""
    words: list[str] = []
    for missing, run in groupby(points, key=lambda point: point[1] is None):
        places = [f"{x(at):g} {y(value):g}" for at, value in run if value is not None]
        if not missing:
            words.append(f"M{'L'.join(places)}" if len(places) > 1 else f"M{places[0]}m-3 0h6")
    return "".join(words)


def _stairs(heights: Sequence[float], edges: Sequence[float], x: Scale, y: Scale) -> str:
    stairs = (
        f"V{y(height):g}H{x(edge):g}" for height, edge in zip(heights, edges[1:], strict=True)
    )
    return f"M{x(edges[0]):g} {BOTTOM}{''.join(stairs)}V{BOTTOM}Z"


def _mark(at: float, name: str, number: int) -> Element:
    """A line with its name; names of neighbours stand at different heights."""
    line = tag("path", class_="mark", d=f"M{at:g} {TOP}V{BOTTOM}")
    side = "end" if at > (LEFT + RIGHT) / 2 else "start"
    beside = at - 5 if side == "end" else at + 5
    text = tag(
        "text", name, class_="mark-name", x=beside, y=TOP + 10 + 18 * number, text_anchor=side
    )
    return tag("g", line, text)


def _bar(bar: Bar, x: Scale, top: float) -> Iterable[Element]:
    width = max(x(bar.value) - LABELS, 1.5 if bar.value else 0)
    yield tag(
        "rect", class_=f"bar {bar.style}", x=LABELS, y=top + 2, width=width, height=BAR - 4, rx=2
    )
    yield tag("text", bar.text, class_="value", x=LABELS + width + 7, y=top + BAR / 2, dy=".35em")


def _hints(texts: Sequence[str]) -> Iterable[Element]:
    width = (RIGHT - LEFT) / max(len(texts), 1)
    for n, text in enumerate(texts):
        yield _hint(LEFT + n * width, LEFT + (n + 1) * width, text)


def _hint(left: float, right: float, text: str) -> Element:
    """A text that shows where a pointer rests."""
    box = {"x": left, "y": TOP, "width": right - left, "height": BOTTOM - TOP}
    return tag("rect", tag("title", text), class_="hint", **box)
