"""The service: wiring, tasks, signals.

Stopping has two steps. First nothing more is read, and what is under way is finished. Then, after
`WORKER_SHUTDOWN_TIMEOUT`, what is left is cancelled: it stays pending, for the next worker.
"""

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import anyio
import structlog
from anyio.abc import TaskGroup

from streams.connection import GroupLost, RedisUnavailable
from worker.batch import Connections, Servers
from worker.claims import Claims
from worker.dependency import Dependency
from worker.errors import InfluxUnavailable, PostgresUnavailable
from worker.influx import PointWriter, sink_of
from worker.intake import Intake
from worker.ledger import Ledger
from worker.migrate import check_schema
from worker.settings import Settings

UPKEEP_EVERY_S = 60.0
QUIET_CONSUMER_MS = (
    3_600_000  #: a consumer that holds nothing and was not seen for an hour is removed
)

FINISH_S_MAX = 10.0  #: seconds for points still owed at the end; others drain the rest

log = structlog.stdlib.get_logger("worker")


async def serve(settings: Settings, *, drain: bool = False) -> None:
    """Run a worker until SIGTERM or SIGINT, or until its streams are drained.

    :raises SchemaMismatch: nothing was read
    """
    async with _open(settings, drain=drain) as (intakes, points):
        async with anyio.create_task_group() as background:
            background.start_soon(points.drain_forever, name="drain points")
            for intake in intakes:
                background.start_soon(_upkeep, intake, name=f"upkeep {intake.group.stream}")
            log.info("worker.ready", streams=settings.streams, consumer=settings.consumer)
            await _run(intakes, settings)
            background.cancel_scope.cancel()
        await _finish(intakes, points)
    log.info("worker.stopped")


@asynccontextmanager
async def _open(
    settings: Settings, *, drain: bool
) -> AsyncGenerator[tuple[list[Intake], PointWriter]]:
    servers = Servers(
        Dependency("redis"), Dependency("claims"), Dependency("postgres"), Dependency("influxdb")
    )
    token = uuid4().hex
    async with AsyncExitStack() as stack:
        ledger = Ledger(
            settings.database_address,
            settings.database_schema,
            timeout_ms=settings.postgres_timeout_ms,
            connections_max=len(settings.streams) + 2,
        )
        stack.push_async_callback(ledger.aclose)
        await servers.postgres.insist(
            lambda: check_schema(ledger, settings.database_schema), PostgresUnavailable
        )
        points = PointWriter(sink_of(settings), ledger, servers.influxdb, servers.postgres)
        stack.push_async_callback(points.aclose)
        intakes: list[Intake] = []
        for stream in settings.streams:
            claims = Claims(
                settings.redis_address,
                settings.claims_address,
                stream,
                settings.group,
                token,
                window_ms=settings.dedupe_window_ms,
                timeout_ms=settings.redis_timeout_ms,
            )
            stack.push_async_callback(claims.aclose)
            intake = Intake(
                Connections(claims, ledger, points, servers), settings, stream, drain=drain
            )
            stack.push_async_callback(intake.group.aclose)
            intakes.append(intake)
        yield intakes, points


async def _run(intakes: list[Intake], settings: Settings) -> None:
    """Read all streams until they end by themselves or a signal comes."""
    async with anyio.create_task_group() as outer:
        async with anyio.create_task_group() as reading:
            outer.start_soon(_watch_signals, reading, intakes, settings, name="signals")
            for intake in intakes:
                reading.start_soon(intake.run, name=f"intake {intake.group.stream}")
        outer.cancel_scope.cancel()


async def _watch_signals(reading: TaskGroup, intakes: list[Intake], settings: Settings) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        name = (await anext(signals)).name
        log.info("worker.stopping", signal=name, bound_ms=settings.shutdown_timeout_ms)
        for intake in intakes:
            intake.stop()
        reading.cancel_scope.deadline = anyio.current_time() + settings.shutdown_timeout_ms / 1000
        await anext(signals)  # a second one: at once
        reading.cancel_scope.cancel()


async def _upkeep(intake: Intake) -> None:
    """Now and then remove consumers that are long gone."""
    while True:
        try:
            removed = await intake.group.remove_quiet_consumers(idle_ms_min=QUIET_CONSUMER_MS)
            if removed:
                log.info("consumers.removed", stream=intake.group.stream, consumers=removed)
        except (RedisUnavailable, GroupLost) as error:
            log.debug("upkeep.postponed", stream=intake.group.stream, error=str(error))
        await anyio.sleep(UPKEEP_EVERY_S)


async def _finish(intakes: list[Intake], points: PointWriter) -> None:
    """Pay what can be paid at once and leave the groups; whatever fails is done by the next worker."""
    try:
        with anyio.move_on_after(FINISH_S_MAX):
            while not points.owe and await points.drain():
                pass
        for intake in intakes:
            await intake.group.leave()
    except (InfluxUnavailable, RedisUnavailable, GroupLost, PostgresUnavailable) as error:
        log.info("finish.left_to_the_next_worker", error=str(error))
