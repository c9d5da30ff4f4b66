"""The figures of a report, as they stand in its `figures.json`: docs/operations/replay-report.md.

Whoever changes what a name means, or takes one away, counts VERSION up.
"""

from datetime import datetime

import msgspec

VERSION = 1


class FiguresUnreadable(Exception):
    """These are no figures of this version; `str(error)` says why."""


class Counts(msgspec.Struct, frozen=True):
    """Entries by outcome."""

    accepted: int
    duplicates: int
    rejected: int


class Run(msgspec.Struct, frozen=True):
    """What was replayed, and on what."""

    source: str
    stream: str
    pace: str
    event_time: bool
    window_ms: int
    began_at: datetime
    entries: int
    first_entry_id: str
    last_entry_id: str
    published_seconds: float
    published_per_second: float
    redis_version: str
    postgres_version: str


class CodeCount(msgspec.Struct, frozen=True):
    """Rejections with one code."""

    code: str
    count: int


class Result(msgspec.Struct, frozen=True):
    """What became of the entries, beside what should have."""

    as_expected: bool
    expected: Counts
    found: Counts
    missing: int
    repeats_of_earlier_orders: int
    recorded_before: int
    recorded_now: int
    recorded_seconds: float | None
    recorded_per_second: float | None
    rejections: list[CodeCount]


class Clocks(msgspec.Struct, frozen=True):
    """How far Postgres' clock is ahead of Redis', in milliseconds."""

    difference_ms: float
    uncertainty_ms: float

    @property
    def agree(self) -> bool:
        """Whether the difference is lost in what latencies cannot tell anyway."""
        return abs(self.difference_ms) <= self.uncertainty_ms + 1


class Bucket(msgspec.Struct, frozen=True):
    """How many lie at or above `from_ms` and below `to_ms`; null is without a bound."""

    from_ms: float | None
    to_ms: float | None
    count: int


class Percentiles(msgspec.Struct, frozen=True):
    """Of latencies, in milliseconds; each is the latency of some entry."""

    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


class Latency(msgspec.Struct, frozen=True):
    """From entry id to `recorded_at`, of the entries recorded by this run."""

    count: int
    mean_ms: float
    percentiles_ms: Percentiles
    buckets: list[Bucket]


class Slice(msgspec.Struct, frozen=True):
    """One slice of time. Latencies are those of the entries published in it.

    :ivar at_ms: when it begins, since the publishing began
    :ivar waiting: published and not recorded at its end
    """

    at_ms: int
    published: int | None
    recorded: int
    waiting: int | None
    latency_ms: Percentiles | None


class Timeline(msgspec.Struct, frozen=True):
    """The run in slices of equal length."""

    slice_ms: int
    slices: list[Slice]


class SlowEntry(msgspec.Struct, frozen=True):
    """An entry that took longest; `at_ms` is when it was published, since the publishing began."""

    entry_id: str
    at_ms: float
    latency_ms: float
    outcome: str
    order_id: str | None
    symbol: str | None
    code: str | None
    original_entry_id: str | None


class Figures(msgspec.Struct, frozen=True):
    """Everything a page is made of.

    :ivar latency: None where `latency_omitted` says why
    """

    version: int
    run: Run
    result: Result
    clocks: Clocks | None
    latency: Latency | None
    latency_omitted: str | None
    timeline: Timeline
    distances: list[Bucket]
    slowest: list[SlowEntry]


class _Versioned(msgspec.Struct):
    version: int


def as_json(figures: Figures) -> bytes:
    """The figures as `figures.json` holds them."""
    return msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n"


def from_json(text: bytes) -> Figures:
    """Read figures back. :raises FiguresUnreadable: they are none, or of another version"""
    try:
        version = msgspec.json.decode(text, type=_Versioned).version
        if version != VERSION:
            raise FiguresUnreadable(f"of version {version}, and only {VERSION} can be read")
        return msgspec.json.decode(text, type=Figures)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FiguresUnreadable(f"no figures of a replay: {error}") from error
