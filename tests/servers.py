"""The servers that all tests use: the one place that decides which, and that starts and stops them.

A server that the environment names is used as it is: `REDIS_URL` or `REDIS_HOST`, `DATABASE_URL` or
`DATABASE_HOST`, `INFLUXDB_URL` or `INFLUXDB_HOST`, with the rest of their variables. Any other is started
for the test session (for each worker of pytest-xdist one of its own), on a free port of 127.0.0.1, with
its files in a temporary directory.

Tests that stop, halt or kill a server ask for `own_redis` and its like: always servers of their own.
"""

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

from tests.influxdb_server import InfluxServer, InfluxUnavailable
from worker.embedded import PostgresServer, RedisServer
from worker.errors import EmbeddedUnavailable
from worker.settings import load

LOG_LINES_KEPT = 10_000
REDIS_DATABASES = "64"  #: of a Redis of our own; each test takes one


class ServerUnavailable(Exception):
    """A server can neither be found nor started; the message says why, and what to do about it."""


class Server(Protocol):
    """What the three kinds of servers have in common."""

    def start(self) -> None:
        """Start it and wait until it answers; nothing to do where it runs."""
        ...

    def stop(self) -> None:
        """Stop it as an operator would."""
        ...

    def log_tail(self, lines: int = 40) -> str:
        """Give the last lines of its log."""
        ...


S = TypeVar("S", bound=Server)


class Log(NamedTuple):
    """A log that a failing test shows: its name, and its last lines, at most as many as asked for."""

    name: str
    tail: Callable[[int], str]


class Servers:
    """Servers that live until `close`; each is started when it is first asked for.

    Not thread-safe. Every property and method that gives a server raises `ServerUnavailable`.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Read what the environment names; start nothing yet.

        :raises BadSettings: the environment's addresses are wrong
        """
        self._environ = environ
        self._given = load({name: environ[name] for name in environ if not _is_worker(name)})
        self._running = ExitStack()
        self.logs: list[Log] = []  #: of every server started here, stopped ones included

    def close(self) -> None:
        """Stop what was started, and remove its files; the logs are kept, for a failure told later."""
        self.logs = [_kept(log) for log in self.logs]
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def redis_url(self) -> str:
        """The Redis of the session. Whoever uses it takes a logical database: see `isolation`."""
        return self._given.redis_address if self._names("REDIS") else self.own_redis().url

    @cached_property
    def database_url(self) -> str:
        """The Postgres of the session. Whoever uses it makes a schema: see `isolation`."""
        return self._given.database_address if self._names("DATABASE") else self.own_postgres().url

    @cached_property
    def influx(self) -> InfluxServer:
        """The InfluxDB of the session, which decides itself: see `influxdb_server`."""
        return self._started("InfluxDB", InfluxServer)

    def own_redis(
        self, options: Mapping[str, str] | None = None, program: Path | None = None
    ) -> RedisServer:
        """Start a Redis for the caller alone.

        :param options: settings of redis.conf by name
        :param program: the server to run; the session's kind where none is given
        """
        ours = {"databases": REDIS_DATABASES, **(options or {})}
        directory = self._directory() / "redis"
        return self._started("Redis", lambda: RedisServer(directory, None, ours, program))

    def own_postgres(self) -> PostgresServer:
        """Start a Postgres for the caller alone."""
        return self._started("Postgres", lambda: _empty_postgres(self._directory()))

    def own_influx(self) -> InfluxServer:
        """Start an InfluxDB for the caller alone."""
        return self._started("InfluxDB", lambda: InfluxServer({}))

    def _names(self, kind: str) -> bool:
        names = [f"{kind}_{part}{file}" for part in ("URL", "HOST") for file in ("", "_FILE")]
        return any(self._environ.get(name) for name in names)

    def _started(self, name: str, find: Callable[[], S]) -> S:
        try:
            server = find()
            self.logs.append(Log(name, server.log_tail))
            server.start()
        except (EmbeddedUnavailable, InfluxUnavailable) as error:
            raise ServerUnavailable(str(error)) from error
        end = server.close if isinstance(server, InfluxServer) else server.stop
        self._running.callback(end)
        return server

    def _directory(self) -> Path:
        directory = tempfile.mkdtemp(prefix="ordergate-tests-")
        self._running.callback(shutil.rmtree, directory, ignore_errors=True)
        return Path(directory)


def _empty_postgres(directory: Path) -> PostgresServer:
    """One whose files are there already. To make them takes it a second, and they are the same each time."""
    subprocess.run(["cp", "-a", _postgres_files(), directory / "data"], check=True)
    return PostgresServer(directory)


@cache
def _postgres_files() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="ordergate-tests-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with PostgresServer(directory):
        return directory / "data"


def _kept(log: Log) -> Log:
    lines = log.tail(LOG_LINES_KEPT).splitlines()

    def tail(count: int) -> str:
        return "\n".join(lines[-count:])

    return Log(log.name, tail)


def _is_worker(name: str) -> bool:
    return name.startswith("WORKER_")
