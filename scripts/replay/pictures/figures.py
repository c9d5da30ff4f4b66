"""The figures of a report, as they stand in its `figures.json`: docs/operations/replay-report.md.

Whoever changes what a name means, takes one away, or moves a bound of buckets counts VERSION up.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

VERSION = 1

#: About six to a factor of ten, at numbers that read well; to seventeen minutes.
LATENCY_BOUNDS_MS = (
    *(step * 10.0**power for power in range(6) for step in (1, 1.5, 2, 3, 5, 7)),
    1e6,
)
#: By magnitude, at times that people speak of.
DISTANCE_BOUNDS_MS = (
    *(1.0, 10.0, 100.0, 1000.0, 10_000.0, 60_000.0, 600_000.0, 3_600_000.0),
    *(6 * 3_600_000.0, 24 * 3_600_000.0, 7 * 24 * 3_600_000.0, 30 * 24 * 3_600_000.0),
)

Edge = float | None
PositiveInt = Annotated[int, Meta(ge=1)]


class FiguresUnreadable(Exception):
    """These are no figures of this version; `str(error)` says why."""


class Counts(msgspec.Struct, frozen=True):
    """Entries by outcome."""

    accepted: int
    duplicates: int
    rejected: int


class Run(msgspec.Struct, frozen=True):
    """What was replayed, and on what. `redis_version` is None where Redis does not tell it."""

    source: str
    stream: str
    pace: str
    event_time: bool
    window_ms: int
    began_at: datetime
    entries: PositiveInt
    first_entry_id: str
    last_entry_id: str
    published_seconds: float
    published_per_second: float
    redis_version: str | None
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

    count: PositiveInt
    mean_ms: float
    percentiles_ms: Percentiles
    buckets: list[Bucket]

    def __post_init__(self) -> None:
        """:raises ValueError: the buckets are not those of this version, or hold another number"""
        _check_bounds(self.buckets, LATENCY_BOUNDS_MS, None)
        if sum(bucket.count for bucket in self.buckets) != self.count:
            raise ValueError("the buckets of latency do not hold all entries")


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
    """The run in slices of equal length; without any where nothing was recorded."""

    slice_ms: PositiveInt
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

    :ivar clocks: None where there is no latency, and where Redis does not tell its time
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

    def __post_init__(self) -> None:
        """:raises ValueError: the buckets are not those of this version"""
        _check_bounds(self.distances, DISTANCE_BOUNDS_MS, 0)


def bucket_edges(bounds: Sequence[float], lowest: Edge) -> list[tuple[Edge, Edge]]:
    """From where to where each bucket goes; the last has no bound."""
    return list(pairwise([lowest, *bounds, None]))


def _check_bounds(buckets: Sequence[Bucket], bounds: Sequence[float], lowest: Edge) -> None:
    if [(bucket.from_ms, bucket.to_ms) for bucket in buckets] != bucket_edges(bounds, lowest):
        raise ValueError("buckets with other bounds than those of this version")


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
