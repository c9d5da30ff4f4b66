"""From values to places on a chart, where its ticks stand, and how numbers read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10

#: Milliseconds that a slice of time may have: what people count in.
SLICES_MS = (
    *(step * 10**power for power in (1, 2, 3) for step in (1, 2, 5)),
    *(step * 1000 for step in (10, 15, 30)),
    *(step * 60_000 for step in (1, 2, 5, 10, 15, 30)),
    *(step * 3_600_000 for step in (1, 2, 3, 6, 12, 24)),
)
SLICES_MIN, SLICES_MAX = 10, 60
ENTRIES_A_SLICE = 1000  #: a slice of a short run should hold more than a batch or two
LOG_TICKS_MAX = 8
DAY_MS = 86_400_000
NOTHING, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"

_UNITS = ((DAY_MS, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms"))


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low`…`high` to `start`…`end`; what lies beyond is drawn at the edge.

    :ivar log: by magnitude; `low` is above zero then
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, to a hundredth."""
        value = min(max(value, self.low), self.high)
        part = self._units(value) / self._units(self.high)
        return round(self.start + part * (self.end - self.start), 2)

    def _units(self, value: float) -> float:
        return log10(value / self.low) if self.log else value - self.low


def ticks(high: float, count_max: int) -> list[float]:
    """At most so many ticks from 0 at round distances; the last is `high` or above it."""
    if high <= 0:
        return [0.0, 1.0]
    step = nice(high / (count_max - 1))
    count = next(n for n in range(1, count_max + 1) if n * step >= high * (1 - 1e-9))
    return [round(n * step, 12) for n in range(count + 1)]


def nice(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below the value, which is above zero."""
    power = 10.0 ** floor(log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks from `low` to `high` by magnitude: powers of ten, and 2 and 5 of them where there is room."""
    fine = _log_ticks(low, high, (1, 2, 5))
    return fine if len(fine) <= LOG_TICKS_MAX else _log_ticks(low, high, (1,))


def log_ticks_around(lowest: float, highest: float) -> list[float]:
    """At least two such ticks around the lowest value and the highest, both above zero."""
    found = _around(lowest, highest, (1, 2, 5))
    return found if len(found) <= LOG_TICKS_MAX else _around(lowest, highest, (1,))


def _around(lowest: float, highest: float, steps: Sequence[int]) -> list[float]:
    found = _log_ticks(lowest / 10, highest * 10, steps)
    first = max(tick for tick in found if tick <= lowest)
    last = min(tick for tick in found if tick >= highest and tick > first)
    return [tick for tick in found if first <= tick <= last]


def _log_ticks(low: float, high: float, steps: Sequence[int]) -> list[float]:
    powers = range(floor(log10(low)), floor(log10(high)) + 1)
    found = (step * 10.0**power for power in powers for step in steps)
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def time_ticks(high_ms: float, count_max: int) -> list[float]:
    """Ticks from 0 that are not above `high_ms`, at distances that people count in."""
    step = _first_step(high_ms, count_max - 1)
    return [float(at) for at in range(0, int(high_ms) + 1, step)]


def slice_ms(span_ms: float, entries: int) -> int:
    """How long slices of time are, so that at most SLICES_MAX hold a span, fewer for few entries."""
    count = min(max(entries // ENTRIES_A_SLICE, SLICES_MIN), SLICES_MAX)
    return _first_step(span_ms, count - 1)


def _first_step(span_ms: float, count: int) -> int:
    return next(step for step in _steps() if span_ms <= step * count)


def _steps() -> Iterator[int]:
    yield from SLICES_MS
    step = DAY_MS
    while True:
        step *= 2
        yield step


# --- how numbers read ---


def count_text(value: float) -> str:
    """Thousands apart: `12,345`."""
    return f"{value:,.0f}"


def short_text(value: float) -> str:
    """Few characters, for an axis: `950`, `1.5k`, `20M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def duration_text(value_ms: float) -> str:
    """Three digits and a unit: `0.5 ms`, `12.3 ms`, `1.5 s`, `10 min`."""
    return _in_units(value_ms, _UNITS)


def latency_text(value_ms: float) -> str:
    """The same with no unit above seconds, for what is compared: `82 s` and not `1.37 min`."""
    return _in_units(value_ms, _UNITS[-2:])


def _in_units(value_ms: float, units: Sequence[tuple[int, str]]) -> str:
    size, unit = next((it for it in units if abs(value_ms) >= it[0]), units[-1])
    number = value_ms / size
    digits = 3 if abs(number) < 100 else 4
    return f"{float(f'{number:.{digits}g}'):,.12g} {unit}"


def ratio_text(ratio: float | None) -> str:
    """`1.25 x`; a dash where there is none."""
    return NOTHING if ratio is None else f"{ratio:,.3g} {TIMES}"
