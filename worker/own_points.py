"""The worker's own figures: points of the measurement `worker`, every ten seconds, one for each stream.

For dashboards alone: a point that InfluxDB does not take is lost, for nothing is noted of it. What a server
that is away would have to tell is left out.
"""

from collections.abc import Mapping, Sequence
from time import time_ns

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streams.connection import GroupLost, RedisUnavailable, connect
from worker.errors import OrdergateError
from worker.influx import PointWriter
from worker.operate.figures import PointFigures, points_owed, stream_figures
from worker.points import tag_value
from worker.settings import Settings
from worker.vitals import SECONDS, WORDS, StreamVitals, Vitals, quantile

MEASUREMENT = "worker"
EVERY_S = 10.0

Values = Mapping[str, int | float | None]


class Moment(msgspec.Struct, frozen=True):
    """The counts of one stream at one moment; a point tells of the difference between two."""

    outcomes: dict[str, int]
    batches: int
    taken_over: int
    latency: list[int]

    @classmethod
    def of(cls, its: StreamVitals) -> "Moment":
        """The counts now."""
        return cls(
            dict(its.outcomes), sum(its.batches.counts), its.taken_over, list(its.latency.counts)
        )


async def write_own_points(vitals: Vitals, points: PointWriter) -> None:
    """Write points until cancelled."""
    settings = vitals.settings
    then = {stream: Moment.of(its) for stream, its in vitals.streams.items()}
    async with connect(settings.redis_address, timeout_ms=settings.redis_timeout_ms) as redis:
        while True:
            await anyio.sleep(EVERY_S)
            now = {stream: Moment.of(its) for stream, its in vitals.streams.items()}
            backlog = await _backlog(points, settings.streams)
            lines: list[str] = []
            for stream in settings.streams:
                values = {
                    **since(then[stream], now[stream]),
                    **await _standing(redis, stream, settings.group),
                    **_owed(backlog.get(stream)),
                    **{f"{its.name}_losses": its.losses for its in vitals.dependencies},
                }
                lines.append(own_line(settings, stream, values, time_ns()))
            then = now
            await points.write_own("\n".join(lines).encode())


def since(then: Moment, now: Moment) -> Values:
    """What was done between two moments: entries, batches, and how long the batches' oldest entries took."""
    settled = [later - earlier for later, earlier in zip(now.latency, then.latency, strict=True)]
    return {
        **{word: now.outcomes[word] - then.outcomes[word] for word in WORDS},
        "batches": now.batches - then.batches,
        "taken_over": now.taken_over - then.taken_over,
        "latency_p50_s": quantile(SECONDS, settled, 0.5),
        "latency_p99_s": quantile(SECONDS, settled, 0.99),
    }


async def _standing(redis: Redis, stream: str, group: str) -> Values:
    try:
        its = await stream_figures(redis, stream, group)
    except (RedisUnavailable, GroupLost, ResponseError):
        return {}
    return {
        "waiting": its.waiting,
        "lag_s": its.lag_ms / 1000,
        "pending": its.pending,
        "oldest_pending_s": its.oldest.age_ms / 1000 if its.oldest else 0.0,
        "lost": its.lost,
        "dead_letters": its.dead_letters,
    }


async def _backlog(points: PointWriter, streams: Sequence[str]) -> Mapping[str, PointFigures]:
    try:
        return await points_owed(points.ledger, streams)
    except OrdergateError:
        return {}


def _owed(its: PointFigures | None) -> Values:
    return {"points_owed": its.owed, "points_parked": its.parked} if its else {}


def own_line(settings: Settings, stream: str, values: Values, at_ns: int) -> str:
    """One point as a line of line protocol; values that are None are left out."""
    tags = {"consumer": settings.consumer, "group": settings.group, "stream": stream}
    series = ",".join([MEASUREMENT, *(f"{name}={tag_value(tags[name])}" for name in tags)])
    fields = ",".join(f"{name}={_number(it)}" for name, it in values.items() if it is not None)
    return f"{series} {fields} {at_ns}"


def _number(value: float) -> str:
    return f"{value}i" if isinstance(value, int) else f"{value:.6f}"
