"""Plots as plain SVG: bars with their ranges, and curves on axes that may be logarithmic."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from tests.load.figures import Spread, number

COLOURS = ("#1f6feb", "#d1570b", "#2da44e", "#8250df", "#9a6700", "#57606a")
INK, FAINT = "#57606a", "#d0d7de"
WIDTH, BAR, LABEL = 760, 30, 190
HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 80, 190, 40, 50
Curves = Mapping[str, Sequence[tuple[float, float]]]


def bars(title: str, values: Mapping[str, Spread]) -> str:
    """A bar for each name, its length the median, with a whisker for the range. From zero."""
    scale = (WIDTH - LABEL - 130) / max(value.highest for value in values.values())
    parts = [_text(10, 22, title, weight="bold")]
    for place, (name, value) in enumerate(values.items()):
        top = TOP + place * BAR
        middle, end = top + 10, LABEL + value.median * scale
        low, high = LABEL + value.lowest * scale, LABEL + value.highest * scale
        colour = COLOURS[0] if place == 0 else COLOURS[-1]
        parts += [
            _text(LABEL - 8, top + 15, name, anchor="end"),
            f'<rect x="{LABEL}" y="{top}" width="{end - LABEL:.1f}" height="20" fill="{colour}"/>',
            _line(low, middle, high, middle, "#000"),
            _text(max(end, high) + 8, top + 15, number(value.median)),
        ]
    return _svg(TOP + len(values) * BAR + 10, parts)


class _Axis:
    """Where values lie between two edges of the plot, and which of them get a mark."""

    def __init__(self, values: Sequence[float], edges: tuple[float, float], *, log: bool) -> None:
        self._log, self._edges = log, edges
        self.low = min(values) if log else 0.0
        self.high = max(values) * (1 if log else 1.1)

    def at(self, value: float) -> float:
        """The place of a value."""
        start, end = self._edges
        low, high, value = map(self._scaled, (self.low, self.high, value))
        return start + (end - start) * (value - low) / ((high - low) or 1)

    def marks(self) -> list[float]:
        """Round values within the axis."""
        if self._log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            powers = [10.0**power for power in range(first, last + 1)]
            return [value for value in powers if self.low <= value <= self.high] or [self.low]
        step = 10 ** math.floor(math.log10(self.high))
        step = next(step * part for part in (1, 0.5, 0.2, 0.1) if self.high / (step * part) >= 4)
        return [step * count for count in range(int(self.high / step) + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value


def curves(
    title: str,
    x_name: str,
    y_name: str,
    values: Curves,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """A curve with its points for each name."""
    points = [point for curve in values.values() for point in curve]
    x = _Axis([point[0] for point in points], (LEFT, WIDTH - RIGHT), log=log_x)
    y = _Axis([point[1] for point in points], (HEIGHT - BOTTOM, TOP), log=log_y)
    parts = [_text(10, 22, title, weight="bold"), *_grid(x, y)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_name, anchor="middle"))
    parts.append(_text(LEFT - 8, TOP - 8, y_name, anchor="middle"))
    for place, (name, curve) in enumerate(values.items()):
        parts += _curve([(x.at(a), y.at(b)) for a, b in curve], COLOURS[place % len(COLOURS)])
        at = y.at(curve[-1][1])
        parts.append(_text(x.at(curve[-1][0]) + 10, at + 4, name, fill=COLOURS[place % 6]))
    return _svg(HEIGHT, parts)


def _curve(places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
    return [line, *dots]


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts: list[str] = []
    for value in x.marks():
        at = x.at(value)
        parts.append(_line(at, TOP, at, HEIGHT - BOTTOM, FAINT))
        parts.append(_text(at, HEIGHT - BOTTOM + 18, _mark(value), anchor="middle"))
    for value in y.marks():
        at = y.at(value)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, FAINT))
        parts.append(_text(LEFT - 8, at + 4, _mark(value), anchor="end"))
    return parts


def _mark(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", fill: str = INK
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-weight="{weight}" fill="{fill}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}"/>'


def _svg(height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"
