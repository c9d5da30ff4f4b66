"""The product's own objects for a test, connected to real servers and closed with the test.

A test that wants the whole worker needs none of this: `tests.workers` runs it. This is for tests that go
between its steps: stop Redis after the claim, let four workers record at once, read the claims' Redis.

`ProductionReadyTestBase` gives all of it to a test class, and proves that each test left nothing behind.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, contextmanager
from typing import Literal, Protocol, Self, TypeVar, overload

import anyio
import pytest

from streams.connection import RedisUnavailable, call, connect
from streams.group import Group
from tests.integration.infrastructure.leftovers import Footprint, left_behind
from tests.isolation import Place
from tests.servers import Servers
from worker import batch
from worker.batch import Connections
from worker.claims import Claims
from worker.dependency import Dependency
from worker.errors import OrdergateError
from worker.influx import PointWriter, sink_of
from worker.intake import Intake
from worker.ledger import Ledger
from worker.migrate import check_schema
from worker.settings import Settings

CLEANUP_S_MAX = 0.5  #: seconds to close everything, whatever state the servers are in
HEALTH_POINT = b"health up=1i"  #: in a measurement of its own, where no outcome is looked for
SERVICES = (
    "DatabaseService",
    "PointWriter",
    "CacheManager",
    "Connections",
    "Intake",
    "ConsumerGroup",
)


class ServiceUnknown(LookupError):
    """No service has that name; the message lists those that there are."""


class ServiceUnhealthy(Exception):
    """A server does not do what a worker needs of it; the message names it and what it said."""


class _Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class DependencyContainer:
    """The services of a test by name. Not thread-safe; empty once its factory has cleaned up."""

    def __init__(self, services: dict[str, object]) -> None:
        self._services = services

    @overload
    def get(self, name: Literal["DatabaseService"]) -> Ledger: ...
    @overload
    def get(self, name: Literal["PointWriter"]) -> PointWriter: ...
    @overload
    def get(self, name: Literal["CacheManager"]) -> Claims: ...
    @overload
    def get(self, name: Literal["Connections"]) -> Connections: ...
    @overload
    def get(self, name: Literal["Intake"]) -> Intake: ...
    @overload
    def get(self, name: Literal["ConsumerGroup"]) -> Group: ...
    @overload
    def get(self, name: str) -> object: ...
    def get(self, name: str) -> object:
        """Give a service.

        - `DatabaseService`: the ledger in Postgres; `CacheManager`: the claims in Redis
        - `PointWriter`: points to InfluxDB; `ConsumerGroup`: one consumer's view of the stream
        - `Connections`: what `worker.batch.process` takes, with what is known of each server's health
        - `Intake`: reads the stream to its end and takes its entries through all six steps

        :raises ServiceUnknown: no service has that name, or its factory is not initialised (any more)
        """
        if name not in SERVICES:
            raise ServiceUnknown(f"no service is named {name!r}; known are {', '.join(SERVICES)}")
        if name not in self._services:
            raise ServiceUnknown(f"{name} is closed, or was never opened: initialize_core_services")
        return self._services[name]


class RealServiceFactory:
    """Opens the services of one worker and closes them. Two factories are two workers.

        async with RealServiceFactory() as factory:
            services = await factory.initialize_core_services(clean_database)

    Not thread-safe. Who does not use `async with` calls `cleanup` whatever happens.
    """

    def __init__(self) -> None:
        self._opened = AsyncExitStack()
        self._services: dict[str, object] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cleanup()

    async def initialize_core_services(self, clean_database: Place) -> DependencyContainer:
        """Open every service in its place, and see that each server serves.

        :param clean_database: `clean_database.having(WORKER_…=…)` gives the services other settings
        :raises ServiceUnhealthy: a server does not; what was opened is closed
        :raises RuntimeError: they are open already
        """
        if self._services:
            raise RuntimeError("the services are open already; a second worker is a second factory")
        try:
            await self._open(clean_database.settings)
        except BaseException:
            await self.cleanup()
            raise
        return self.create_dependency_container()

    def create_dependency_container(self) -> DependencyContainer:
        """A container of what is open now, and as long as it is open."""
        return DependencyContainer(self._services)

    async def cleanup(self) -> None:
        """Close what was opened, the last first. Once: a second call finds nothing to do.

        One service that fails to close does not keep the others open.

        :raises TimeoutError: not all was closed within CLEANUP_S_MAX seconds
        """
        self._services.clear()
        with anyio.fail_after(CLEANUP_S_MAX, shield=True):
            await self._opened.aclose()

    async def _open(self, settings: Settings) -> None:
        """Each with one round trip, because clients connect when first used, and not before."""
        servers = batch.Servers(*map(Dependency, ("redis", "claims", "postgres", "influxdb")))
        with _asked("Postgres"):
            ledger = self._keep("DatabaseService", _ledger(settings))
            await check_schema(ledger, settings.database_schema)
        with _asked("InfluxDB"):
            sink = self._closing(sink_of(settings))
            await sink.write(HEALTH_POINT)
        left_after_ms = settings.takeover_after_ms
        points = PointWriter(
            sink, ledger, servers.influxdb, servers.postgres, left_after_ms=left_after_ms
        )
        self._services["PointWriter"] = points
        with _asked("the Redis of the claims"):
            claims = self._keep("CacheManager", _claims(settings))
            async with connect(
                settings.claims_address, timeout_ms=settings.redis_timeout_ms
            ) as redis:
                await call(redis, "PING")
        io = Connections(claims, ledger, points, servers)
        intake = Intake(io, settings, settings.streams[0], anyio.Lock(), drain=True)
        self._services |= {"Connections": io, "Intake": intake}
        with _asked("Redis"):
            await self._keep("ConsumerGroup", intake.group).create()

    def _keep(self, name: str, service: C) -> C:
        self._services[name] = self._closing(service)
        return service

    def _closing(self, service: C) -> C:
        self._opened.push_async_callback(service.aclose)
        return service


@contextmanager
def _asked(server: str) -> Generator[None]:
    try:
        yield
    except (OrdergateError, RedisUnavailable) as error:
        raise ServiceUnhealthy(f"{server} is not healthy: {error}") from error


def _ledger(settings: Settings) -> Ledger:
    return Ledger(
        settings.database_address,
        settings.database_schema,
        timeout_ms=settings.postgres_timeout_ms,
    )


def _claims(settings: Settings) -> Claims:
    return Claims(
        settings.redis_address,
        settings.claims_address,
        settings.streams[0],
        settings.group,
        window_ms=settings.dedupe_window_ms,
        timeout_ms=settings.redis_timeout_ms,
    )


class ProductionReadyTestBase:
    """A test class whose every test has services of its own, and is shown to have left nothing behind.

    :ivar place: where the test is: `publish` orders, `fetch` rows, read `points`, ask `redis`
    :ivar services: the product's objects by name, see `DependencyContainer.get`
    """

    place: Place
    services: DependencyContainer

    @pytest.fixture(autouse=True)
    async def leaves_nothing_behind(self, clean_servers: Servers) -> AsyncGenerator[None]:
        """Look, once all that the test had is given back, for what is still there."""
        before = Footprint.now()
        yield
        left = await left_behind(self.place, clean_servers, before)
        assert not left, f"left behind: {', '.join(left)}"

    @pytest.fixture(autouse=True)
    async def has_its_services(
        self,
        leaves_nothing_behind: None,  # noqa: ARG002 - made before the others, it ends after them
        clean_database: Place,
        real_services: DependencyContainer,
    ) -> None:
        """Give the test its place and services."""
        self.place, self.services = clean_database, real_services
