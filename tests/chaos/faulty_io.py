"""Every I/O call of a worker in this process, counted, and one of them made to go wrong.

Redis, Postgres and InfluxDB are real. What is wrapped is the narrowest place that each library has: one
command to Redis, one statement to Postgres, one write of points.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import asyncpg
from redis import exceptions
from redis.asyncio import Redis

from worker.errors import InfluxUnavailable
from worker.influx import InfluxSink
from worker.settings import Settings

LATE_CALLS = 3  #: a late call takes effect after so many others, or at the end
STATEMENTS = ("execute", "fetch", "fetchrow", "fetchval")

Call = Callable[[], Awaitable[Any]]


class Fault(Enum):
    """What goes wrong at one call."""

    DIE_BEFORE = "the worker dies before the call"
    DIE_AFTER = "the worker dies after it took effect"
    LOSE_REPLY = "it takes effect, and the connection breaks"
    TIME_OUT = "it takes effect, and no reply comes in time"
    LATE = "no reply comes in time, and it takes effect later"
    ERROR = "the server answers with an error that passes"


class Died(BaseException):
    """The worker is dead: whatever it tries now, nothing reaches a server."""


class Point(NamedTuple):
    """One call of a run: what it does, and how often that was done before."""

    name: str
    number: int


class FaultyIO:
    """Notes calls; the one at the point `at` goes wrong as `fault` says."""

    def __init__(
        self, settings: Settings, at: Point | None = None, fault: Fault | None = None
    ) -> None:
        self._settings, self._at, self._fault = settings, at, fault
        self._counts: Counter[str] = Counter()
        self.calls: list[Point] = []
        self._dead = False
        self._late: Call | None = None
        self._late_at = 0

    @property
    def reached(self) -> bool:
        """Whether the run got to the point of the fault."""
        return self._at in self.calls

    @contextmanager
    def installed(self) -> Generator[None]:
        """Wrap the libraries while the block runs."""
        redis = cast("Callable[..., Awaitable[Any]]", Redis.execute_command)
        sink = InfluxSink.write

        async def execute_command(client: Redis, *words: Any, **options: Any) -> Any:
            name = " ".join(map(str, words[:2] if words[0] in ("XGROUP", "XINFO") else words[:1]))
            return await self._call(
                f"redis {name}",
                lambda: redis(client, *words, **options),
                lambda: redis(client, *words, **options),
                exceptions.ConnectionError("cut"),
                exceptions.TimeoutError("late"),
                exceptions.ResponseError("LOADING Redis is loading the dataset in memory"),
            )

        async def write(influx: InfluxSink, body: bytes) -> None:
            lost = InfluxUnavailable("cut")
            attempt = lambda: sink(influx, body)  # noqa: E731
            await self._call("influxdb write", attempt, attempt, lost, lost, lost)

        with (
            patch.object(Redis, "execute_command", execute_command),
            patch.object(InfluxSink, "write", write),
            self._statements(),
        ):
            yield

    @contextmanager
    def _statements(self) -> Generator[None]:
        originals = {name: getattr(asyncpg.Connection, name) for name in STATEMENTS}

        def wrapped(name: str) -> Callable[..., Awaitable[Any]]:
            async def statement(connection: Any, query: str, *values: Any, **options: Any) -> Any:
                async def again() -> None:
                    url, schema = self._settings.database_address, self._settings.database_schema
                    pool = asyncpg.create_pool(
                        url, min_size=0, max_size=1, server_settings={"search_path": schema}
                    )
                    async with pool, cast("Any", pool.acquire()) as late:
                        await originals[name](late, query, *values)

                return await self._call(
                    f"postgres {' '.join(query.split()[:2])}",
                    lambda: originals[name](connection, query, *values, **options),
                    again,
                    ConnectionResetError("cut"),
                    TimeoutError("late"),
                    asyncpg.SerializationError("could not serialize access"),
                )

            return statement

        with (
            patch.object(asyncpg.Connection, "execute", wrapped("execute")),
            patch.object(asyncpg.Connection, "fetch", wrapped("fetch")),
            patch.object(asyncpg.Connection, "fetchrow", wrapped("fetchrow")),
            patch.object(asyncpg.Connection, "fetchval", wrapped("fetchval")),
        ):
            yield

    async def _call(
        self,
        name: str,
        call: Call,
        late: Call,
        cut: Exception,
        timeout: Exception,
        error: Exception,
    ) -> Any:
        if self._dead:
            raise Died
        point = Point(name, self._counts[name])
        self._counts[name] += 1
        self.calls.append(point)
        if self._late and len(self.calls) >= self._late_at:
            await self.overdue()
        if point != self._at:
            return await call()
        match self._fault:
            case Fault.DIE_BEFORE | Fault.DIE_AFTER:
                if self._fault is Fault.DIE_AFTER:
                    await call()
                self._dead = True
                raise Died
            case Fault.LOSE_REPLY | Fault.TIME_OUT:
                await call()
                raise cut if self._fault is Fault.LOSE_REPLY else timeout
            case Fault.LATE:
                self._late, self._late_at = late, len(self.calls) + LATE_CALLS
                raise timeout
            case _:
                raise error

    async def overdue(self) -> None:
        """Let the late call take effect, if it has not yet."""
        call, self._late = self._late, None
        if call:
            with suppress(exceptions.RedisError, asyncpg.PostgresError):  # nobody reads the answer
                await call()
