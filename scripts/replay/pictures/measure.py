"""Measure a run for its report: every figure is an aggregate that Postgres makes.

So a run of millions needs no more memory here than one of ten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from time import monotonic
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scripts.replay.outcomes import Outcomes, Row, statements
from scripts.replay.pictures.figures import (
    DISTANCE_BOUNDS_MS,
    LATENCY_BOUNDS_MS,
    VERSION,
    Bucket,
    Clocks,
    CodeCount,
    Counts,
    Figures,
    Latency,
    Percentiles,
    Result,
    Run,
    Slice,
    SlowEntry,
    Timeline,
    bucket_edges,
)
from scripts.replay.pictures.scale import slice_ms
from scripts.replay.report import Compared, Published
from streams.connection import RedisUnavailable, call

FRACTIONS = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)  #: those of `Percentiles`
SLOWEST = 20
CLOCK_SAMPLES = 9  #: the best of them counts

SQL = statements(files("scripts.replay.pictures") / "measure.sql")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a run was made of, for people."""

    source: str
    pace: str
    window_ms: int


async def measure(
    outcomes: Outcomes,
    redis: Redis,
    conditions: Conditions,
    published: Published,
    compared: Compared,
) -> Figures:
    """Measure a run that was waited for.

    What Redis may not tell, to a user with few rights for one, is left out.

    :raises OutcomesUnreadable: nothing is measured then; the run itself is over
    """
    await outcomes.ask(SQL["create_measured"])
    await outcomes.ask(SQL["fill_measured"], published.stream, outcomes.began_at)
    await outcomes.ask(SQL["analyze_measured"])
    timed = compared.latencies_omitted is None
    return Figures(
        version=VERSION,
        run=await _run(outcomes, redis, conditions, published, compared),
        result=await _result(outcomes, compared),
        clocks=await _clocks(outcomes, redis) if timed else None,
        latency=await _latency(outcomes) if timed else None,
        latency_omitted=compared.latencies_omitted,
        timeline=await _timeline(outcomes, compared),
        distances=await _buckets(outcomes, "distance_buckets", DISTANCE_BOUNDS_MS, lowest=0),
        slowest=await _slowest(outcomes, published.stream) if timed else [],
    )


async def _run(
    outcomes: Outcomes,
    redis: Redis,
    conditions: Conditions,
    published: Published,
    compared: Compared,
) -> Run:
    row = (await outcomes.ask(SQL["postgres_version"]))[0]
    return Run(
        source=conditions.source,
        stream=published.stream,
        pace=conditions.pace,
        event_time=compared.event_time,
        window_ms=conditions.window_ms,
        began_at=outcomes.began_at,
        entries=published.entries,
        first_entry_id=str(published.first),
        last_entry_id=str(published.last),
        published_seconds=published.seconds,
        published_per_second=published.entries / published.seconds,
        redis_version=await _redis_version(redis),
        postgres_version=row["current_setting"],
    )


async def _redis_version(redis: Redis) -> str | None:
    """What the server calls itself: `Redis 7.2.4`, or `Valkey 9.1.0` for one that says so."""
    info = cast("Mapping[str, object] | None", await _told(redis, "INFO", "server"))
    if info is None:
        return None
    if version := info.get("valkey_version"):
        return f"Valkey {version}"
    return f"Redis {info['redis_version']}"


async def _told(redis: Redis, *command: str) -> object:
    """Redis' reply, None where it gives none."""
    try:
        return cast("object", await call(redis, *command))
    except (RedisUnavailable, ResponseError):
        return None


async def _result(outcomes: Outcomes, compared: Compared) -> Result:
    expected, found = compared.expected.figures, compared.found.figures
    rows = await outcomes.ask(SQL["rejections"])
    return Result(
        as_expected=compared.as_expected,
        expected=Counts(expected.accepted, expected.duplicates, expected.rejected),
        found=Counts(found.accepted, found.duplicates, found.rejected),
        missing=max(compared.entries - compared.found.recorded, 0),
        repeats_of_earlier_orders=compared.expected.repeats,
        recorded_before=compared.found.recorded - compared.found.recorded_now,
        recorded_now=compared.found.recorded_now,
        recorded_seconds=compared.found.seconds,
        recorded_per_second=compared.per_second,
        rejections=[CodeCount(row["code"], row["count"]) for row in rows],
    )


# --- clocks and latencies ---


async def _clocks(outcomes: Outcomes, redis: Redis) -> Clocks | None:
    samples = [await _clock_sample(outcomes, redis) for _ in range(CLOCK_SAMPLES)]
    told = [clocks for clocks in samples if clocks]
    return min(told, key=lambda clocks: clocks.uncertainty_ms, default=None)


async def _clock_sample(outcomes: Outcomes, redis: Redis) -> Clocks | None:
    """Ask one after the other. Each has answered at some moment between its question and its answer."""
    started = monotonic()
    told = cast("tuple[int, int] | None", await _told(redis, "TIME"))
    at = cast("datetime", (await outcomes.ask("SELECT clock_timestamp() AS at"))[0]["at"])
    half_ms = (monotonic() - started) / 2 * 1000
    if told is None:
        return None
    seconds, micros = told
    apart_ms = at.timestamp() * 1000 - seconds * 1000 - micros / 1000
    return Clocks(difference_ms=apart_ms - half_ms, uncertainty_ms=half_ms)


async def _latency(outcomes: Outcomes) -> Latency:
    row = (await outcomes.ask(SQL["latency"], FRACTIONS))[0]
    return Latency(
        count=row["count"],
        mean_ms=row["mean_ms"],
        percentiles_ms=Percentiles(*row["percentiles_ms"]),
        buckets=await _buckets(outcomes, "latency_buckets", LATENCY_BOUNDS_MS, lowest=None),
    )


async def _buckets(
    outcomes: Outcomes, name: str, bounds: Sequence[float], *, lowest: float | None
) -> list[Bucket]:
    """Every bucket, the empty ones too, so that those of two runs stand side by side."""
    rows = await outcomes.ask(SQL[name], bounds)
    counts = {cast("int", row["place"]): cast("int", row["count"]) for row in rows}
    edges = bucket_edges(bounds, lowest)
    return [Bucket(low, high, counts.get(place, 0)) for place, (low, high) in enumerate(edges)]


async def _slowest(outcomes: Outcomes, stream: str) -> list[SlowEntry]:
    rows = await outcomes.ask(SQL["slowest"], stream, SLOWEST)
    return [SlowEntry(**row) for row in rows]


# --- over time ---


async def _timeline(outcomes: Outcomes, compared: Compared) -> Timeline:
    """The run in slices; in event time nothing is told of when entries were published."""
    event_time = compared.event_time
    row = (await outcomes.ask(SQL["span"], outcomes.began_at))[0]
    if row["recorded_ms"] is None:
        return Timeline(slice_ms(0, compared.entries), [])
    span_ms = row["recorded_ms"] if event_time else max(row["recorded_ms"], row["entry_ms"])
    length = slice_ms(span_ms, compared.entries)
    last = int(span_ms // length)
    rows = await outcomes.ask(SQL["slices"], float(length), last, FRACTIONS, outcomes.began_at)
    return Timeline(length, [_slice(row, length, event_time=event_time) for row in rows])


def _slice(row: Row, length: int, *, event_time: bool) -> Slice:
    latencies = cast("Sequence[float] | None", row["percentiles_ms"])
    return Slice(
        at_ms=row["place"] * length,
        published=None if event_time else row["published"],
        recorded=row["recorded"],
        waiting=None if event_time else row["waiting"],
        latency_ms=None if event_time or latencies is None else Percentiles(*latencies),
    )
