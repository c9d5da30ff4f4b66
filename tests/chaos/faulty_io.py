"""Every I/O call of a worker in this process, counted, and some of them made to go wrong.

Redis, Postgres and InfluxDB are real. What is wrapped is the narrowest place that each library has: one
connection, one command to Redis, one statement to Postgres, one write of points. Several workers may run
in one process, each watched by a `FaultyIO` of its own.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import ExitStack, aclosing, contextmanager, suppress
from contextvars import ContextVar
from enum import Enum
from functools import cache, partial
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import anyio
import asyncpg
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from worker.errors import InfluxUnavailable, OrdergateError
from worker.influx import InfluxSink
from worker.ledger import queries
from worker.settings import Settings

LATE_CALLS = 3  #: a late call takes effect after so many others, or at the end
LATE_S_MAX = 10.0
STATEMENTS = ("execute", "fetch", "fetchrow", "fetchval")
TWO_WORDS = ("XGROUP", "XINFO")  #: commands whose second word says what they do

Call = Callable[[], Awaitable[Any]]


class Fault(Enum):
    """What goes wrong at one call."""

    DIE_BEFORE = "the worker dies before the call"
    DIE_AFTER = "the worker dies after it took effect"
    LOSE_REPLY = "it takes effect, and the connection breaks"
    TIME_OUT = "it takes effect, and no reply comes in time"
    LATE = "no reply comes in time, and it takes effect later"
    ERROR = "the server answers with an error that passes"

    @property
    def is_fatal(self) -> bool:
        """Whether the worker dies of it."""
        return self in (Fault.DIE_BEFORE, Fault.DIE_AFTER)


class Died(BaseException):
    """The worker is dead: whatever it tries now, nothing reaches a server."""


class Point(NamedTuple):
    """One call of a run: what it does, and how often that was done before."""

    name: str
    number: int


class Failures(NamedTuple):
    """What a call raises where it goes wrong."""

    cut: Exception
    timeout: Exception
    error: Exception


class FaultyIO:
    """Notes the calls of one life of a worker; those at the points of `faults` go wrong."""

    def __init__(self, settings: Settings, faults: Mapping[Point, Fault] | None = None) -> None:
        self._settings, self._faults = settings, dict(faults or {})
        apart = settings.claims_address != settings.redis_address
        self._claims_database = settings.claims_address.rpartition("/")[2] if apart else None
        self._counts: Counter[str] = Counter()
        self.calls: list[Point] = []
        self._dead = False
        self.is_over = False  #: its life: what it had open was closed
        self._late: list[tuple[int, Call]] = []

    @property
    def reached(self) -> bool:
        """Whether the run got to the point of every fault."""
        return self._faults.keys() <= set(self.calls)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watch the calls of this task, and of those it starts, while the block runs."""
        token = _watching.set(self)
        try:
            yield
        finally:
            _watching.reset(token)

    def kind(self, client: Redis, words: tuple[Any, ...]) -> str:
        """What a command to Redis does: its script's name, or its own."""
        database = str(client.connection_pool.connection_kwargs.get("db"))
        where = "claims redis" if database == self._claims_database else "redis"
        match str(words[0]):
            case "EVALSHA":
                return f"{where} {scripts()[str(words[1])].name}"
            case "XREADGROUP":
                return f"{where} XREADGROUP {'new' if words[-1] == '>' else 'own'}"
            case word if word in TWO_WORDS:
                return f"{where} {word} {words[1]}"
            case word:
                return f"{where} {word}"

    async def late_statement(
        self, statement: Callable[..., Awaitable[Any]], query: str, values: tuple[Any, ...]
    ) -> None:
        """Execute a statement that the network held up, on a connection of its own."""
        connection = cast(
            "Any",
            await asyncpg.connect(
                self._settings.database_address,
                server_settings={"search_path": self._settings.database_schema},
                command_timeout=LATE_S_MAX,
            ),
        )
        try:
            await statement(connection, query, *values)
        finally:
            await connection.close()

    async def late_write(self, body: bytes) -> None:
        """Write points that the network held up, on a connection of its own."""
        async with aclosing(InfluxSink(self._settings)) as sink:
            await sink.write(body)

    async def call(self, name: str, call: Call, late: Call | None, failures: Failures) -> Any:
        """Make one call, or let it go wrong.

        :param late: makes it where nobody waits for it any more; None where it has no effect then
        """
        if self._dead:
            raise Died
        point = Point(name, self._counts[name])
        self._counts[name] += 1
        self.calls.append(point)
        await self._let_late_calls_happen(len(self.calls))
        match self._faults.get(point):
            case None:
                return await call()
            case Fault.DIE_BEFORE:
                self._dead = True
                raise Died
            case Fault.DIE_AFTER:
                await call()
                self._dead = True
                raise Died
            case Fault.LOSE_REPLY:
                await call()
                raise failures.cut
            case Fault.TIME_OUT:
                await call()
                raise failures.timeout
            case Fault.LATE:
                if late:
                    self._late.append((len(self.calls) + LATE_CALLS, late))
                raise failures.timeout
            case Fault.ERROR:
                raise failures.error

    async def overdue(self) -> None:
        """Let late calls take effect that have not yet: the worker's life is over."""
        self.is_over = True
        await self._let_late_calls_happen(None)

    async def _let_late_calls_happen(self, now: int | None) -> None:
        """Make the calls that are due; nobody reads their answers. No cancellation reaches them."""
        due = [call for at, call in self._late if now is None or at <= now]
        self._late = [(at, call) for at, call in self._late if now is not None and at > now]
        for call in due:
            with (
                unwatched(),
                anyio.fail_after(2 * LATE_S_MAX, shield=True),
                suppress(exceptions.RedisError, asyncpg.PostgresError, OrdergateError),
            ):
                await call()


_watching: ContextVar[FaultyIO | None] = ContextVar("watching", default=None)


@contextmanager
def unwatched() -> Generator[None]:
    """Let no `FaultyIO` see the calls of this task, while the block runs."""
    token = _watching.set(None)
    try:
        yield
    finally:
        _watching.reset(token)


class Script(NamedTuple):
    """One of our Lua scripts."""

    name: str
    text: str


@cache
def scripts() -> dict[str, Script]:
    """Our Lua scripts, by what Redis calls them."""
    found = [f for package in ("worker", "streams") for f in (files(package) / "lua").iterdir()]
    return {
        sha1(f.read_bytes()).hexdigest(): Script(f.name, f.read_text())  # noqa: S324 - Redis' own
        for f in found
    }


@cache
def statements() -> dict[str, str]:
    """The names of our SQL statements, by their text."""
    names = [f.name.removesuffix(".sql") for f in (files("worker") / "sql").iterdir()]
    return {text: name for file in names for name, text in queries(file).items()}


def statement_kind(query: str) -> str:
    """What a statement is called: its name in `worker/sql`, else how it begins."""
    return f"postgres {statements().get(query) or ' '.join(query.split()[:2]).rstrip(';')}"


@contextmanager
def wrapped_libraries() -> Generator[None]:
    """Let `FaultyIO.watching` see the calls, while the block runs."""
    with ExitStack() as stack:
        for wrapped in (
            _redis_commands,
            _redis_connections,
            _statements,
            _postgres_connections,
            _influx_writes,
        ):
            stack.enter_context(wrapped())
        yield


def _redis_failures(error: Exception) -> Failures:
    return Failures(exceptions.ConnectionError("cut"), exceptions.TimeoutError("late"), error)


@contextmanager
def _redis_commands() -> Generator[None]:
    command = cast("Callable[..., Awaitable[Any]]", Redis.execute_command)

    async def execute_command(client: Redis, *words: Any, **options: Any) -> Any:
        call = partial(command, client, *words, **options)
        if not (io := _watching.get()):
            return await call()
        watching = io

        async def late() -> None:
            await call()
            if watching.is_over:  # its connections were closed already
                await client.connection_pool.disconnect()

        loading = exceptions.ResponseError("LOADING Redis is loading the dataset in memory")
        return await io.call(io.kind(client, words), call, late, _redis_failures(loading))

    with patch.object(Redis, "execute_command", execute_command):
        yield


@contextmanager
def _redis_connections() -> Generator[None]:
    connecting = cast("Callable[..., Awaitable[Any]]", AbstractConnection.connect)

    async def connect(connection: AbstractConnection, *arguments: Any, **options: Any) -> None:
        call = partial(connecting, connection, *arguments, **options)
        if not (io := _watching.get()) or connection.is_connected:
            return await call()
        refused = exceptions.ConnectionError("refused")
        try:
            await io.call("redis connect", call, None, _redis_failures(refused))
        except BaseException:
            await connection.disconnect()
            raise

    with patch.object(AbstractConnection, "connect", connect):
        yield


def _postgres_failures(error: Exception) -> Failures:
    return Failures(ConnectionResetError("cut"), TimeoutError("late"), error)


@contextmanager
def _statements() -> Generator[None]:
    def wrapped(statement: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def execute(connection: Any, query: str, *values: Any, **options: Any) -> Any:
            call = partial(statement, connection, query, *values, **options)
            if not (io := _watching.get()):
                return await call()
            # What comes late to a transaction finds it gone, and has no effect.
            alone = not connection.is_in_transaction()
            late = partial(io.late_statement, statement, query, values) if alone else None
            again = asyncpg.SerializationError("could not serialize access")
            return await io.call(statement_kind(query), call, late, _postgres_failures(again))

        return execute

    with ExitStack() as stack:
        for name in STATEMENTS:
            statement = cast("Callable[..., Awaitable[Any]]", getattr(asyncpg.Connection, name))
            stack.enter_context(patch.object(asyncpg.Connection, name, wrapped(statement)))
        yield


@contextmanager
def _postgres_connections() -> Generator[None]:
    connecting = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)

    async def connect(*where: Any, **how: Any) -> Any:
        made: list[Any] = []

        async def call() -> Any:
            made.append(await connecting(*where, **how))
            return made[0]

        if not (io := _watching.get()):
            return await call()
        full = asyncpg.TooManyConnectionsError("too many clients")
        try:
            return await io.call("postgres connect", call, None, _postgres_failures(full))
        except BaseException:
            for connection in made:
                connection.terminate()
            raise

    with patch.object(asyncpg, "connect", connect):
        yield


@contextmanager
def _influx_writes() -> Generator[None]:
    sink = InfluxSink.write

    async def write(influx: InfluxSink, body: bytes) -> None:
        async def call() -> None:
            await sink(influx, body)

        if not (io := _watching.get()):
            return await call()
        lost = InfluxUnavailable("cut")
        late = partial(io.late_write, body)
        return await io.call("influxdb write", call, late, Failures(lost, lost, lost))

    with patch.object(InfluxSink, "write", write):
        yield
