"""What the operator's commands share: settings, servers, how they end, and the times one types."""

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from time import time

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streams.connection import GroupLost, RedisUnavailable, connect
from worker import settings
from worker.errors import BadUsage, InfluxUnavailable, NoAnswer, PostgresUnavailable
from worker.ledger import Ledger
from worker.migrate import check_schema
from worker.operate.point_reader import PointReader, reader_of
from worker.run import in_loop, ledger_of
from worker.settings import Settings, duration_ms, stream_names

NAMES: Mapping[type[Exception], str] = {
    RedisUnavailable: "Redis",
    PostgresUnavailable: "Postgres",
    InfluxUnavailable: "InfluxDB",
}
UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms"))


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers a command asks. Each connects when it is first asked."""

    settings: Settings
    redis: Redis
    claims: Redis
    ledger: Ledger
    points: PointReader


def run(command: Callable[[Servers], Awaitable[int]]) -> int:
    """Run a command on the servers that the environment names; gives its exit code.

    :raises OrdergateError: for `worker.__main__` to tell
    """
    chosen = settings.load()
    codes: list[int] = []

    async def main() -> None:
        async with servers_of(chosen) as servers:
            codes.append(await command(servers))

    try:
        with servers_told():
            in_loop(main)
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return codes[0]


@asynccontextmanager
async def servers_of(chosen: Settings) -> AsyncGenerator[Servers]:
    """The servers that the settings name, closed on leaving."""
    async with AsyncExitStack() as stack:
        redis = connect(chosen.redis_address, timeout_ms=chosen.redis_timeout_ms)
        stack.push_async_callback(redis.aclose)
        claims = connect(chosen.claims_address, timeout_ms=chosen.redis_timeout_ms)
        stack.push_async_callback(claims.aclose)
        ledger = await stack.enter_async_context(ledger_of(chosen))
        points = reader_of(chosen)
        stack.push_async_callback(points.aclose)
        yield Servers(chosen, redis, claims, ledger, points)


@contextmanager
def servers_told() -> Generator[None]:
    """Raise `NoAnswer`, which names the server, for whatever it may say. Nobody waits until it passes."""
    try:
        yield
    except (RedisUnavailable, PostgresUnavailable, InfluxUnavailable) as error:
        does = "refuses" if error.answered else "does not answer"
        raise NoAnswer(f"{NAMES[type(error)]} {does}: {error}") from error
    except (ResponseError, GroupLost) as error:
        raise NoAnswer(f"Redis refuses: {error}") from error


async def schema_checked(servers: Servers) -> None:
    """:raises SchemaMismatch: the schema is not this worker's; :raises PostgresUnavailable: no answer"""
    await check_schema(servers.ledger, servers.settings.database_schema)


def streams_of(chosen: Settings, named: Sequence[str]) -> tuple[str, ...]:
    """The streams a command is about: those named, else those the worker reads."""
    if "" in named:
        raise BadUsage("--stream must not be empty")
    try:
        return stream_names(tuple(dict.fromkeys(named))) or chosen.streams
    except ValueError as error:
        raise BadUsage(f"--stream {error}") from None


def now_ms() -> int:
    """The wall clock, milliseconds since 1970."""
    return int(time() * 1000)


def moment_ms(option: str, text: str | None, now: int) -> int | None:
    """Milliseconds since 1970 of `2h` (so long ago), or of an instant; UTC where it has no offset."""
    if text is None:
        return None
    try:
        ago = duration_ms(text)
        return max(0, now - ago) if isinstance(ago, int) else None
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
        return max(0, int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise BadUsage(
            f"{option} must be a duration such as 2h or 7d, or an instant such as 2026-01-01T12:00Z, "
            f"not {text!a}"
        ) from None


def human(ms: int) -> str:
    """A duration in its two largest units: `3 ms`, `2.5 s`, `3 min 20 s`, `2 h 5 min`, `24 h`."""
    if ms < 60_000:
        return f"{ms} ms" if ms < 1_000 else f"{ms / 1000:g} s"
    for (size, unit), (small, small_unit) in pairwise(UNITS):
        if ms >= size * (2 if unit == "d" else 1):
            rest = ms % size // small
            return f"{ms // size:,} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{ms} ms"


def instant(ms: int) -> str:
    """Milliseconds since 1970 as a person reads them; the number itself beyond the year 9999."""
    try:
        at = datetime.fromtimestamp(ms // 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
    return f"{at:%Y-%m-%d %H:%M:%S}.{ms % 1000:03} UTC"
