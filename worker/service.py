"""The service: wiring, tasks, signals.

Stopping has two steps. First nothing more is read, and what is under way is finished. Then, after
`WORKER_SHUTDOWN_TIMEOUT`, what is left is cancelled: it stays pending, for the next worker.
"""

import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import structlog
from anyio.abc import TaskStatus

from streams.connection import GroupLost, RedisUnavailable
from streams.group import Group
from worker.batch import Connections, Servers
from worker.claims import Claims
from worker.dependency import Dependency
from worker.errors import InfluxUnavailable, PostgresUnavailable
from worker.http import serve_http
from worker.influx import PointWriter, sink_of
from worker.intake import Intake
from worker.ledger import Ledger
from worker.migrate import check_schema
from worker.own_points import write_own_points
from worker.settings import Settings
from worker.vitals import Vitals

UPKEEP_EVERY_S = 10.0
BEAT_S_MAX = 1.0  #: seconds between two looks at the clock, to notice a stall
QUIET_CONSUMER_MS = (
    3_600_000  #: a consumer that holds nothing and was not seen for an hour is removed
)

FINISH_S_MAX = 10.0  #: seconds to pay points still owed and to leave the groups

log = structlog.stdlib.get_logger("worker")


async def serve(settings: Settings, *, drain: bool = False) -> None:
    """Run a worker until SIGTERM or SIGINT, or until its streams are drained.

    :raises SchemaMismatch: nothing was read
    """
    servers = Servers(*map(Dependency, ("redis", "claims", "postgres", "influxdb")))
    vitals = Vitals.of(
        settings, (servers.redis, servers.claims, servers.postgres, servers.influxdb)
    )
    intakes: list[Intake] = []
    serving = anyio.CancelScope()

    def stop(name: str) -> None:
        log.info("worker.stopping", signal=name, bound_ms=settings.shutdown_timeout_ms)
        vitals.stopping = True
        for intake in intakes:
            intake.stop()
        # Before the intakes are there, nothing is held.
        bound_s = settings.shutdown_timeout_ms / 1000 if intakes else 0
        serving.deadline = anyio.current_time() + bound_s

    async with anyio.create_task_group() as tasks:
        await tasks.start(_watch_signals, stop, serving.cancel, name="signals")
        tasks.start_soon(serve_http, vitals, name="http")
        with serving:
            await _serve(vitals, servers, intakes, serving, drain=drain)
        tasks.cancel_scope.cancel()
    log.info("worker.stopped")


async def _watch_signals(
    stop: Callable[[str], None], abandon: Callable[[], None], *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        stop((await anext(signals)).name)
        await anext(signals)  # a second one: at once
        abandon()


async def _serve(
    vitals: Vitals,
    servers: Servers,
    intakes: list[Intake],
    serving: anyio.CancelScope,
    *,
    drain: bool,
) -> None:
    async with _open(vitals, servers, intakes, drain=drain) as points:
        async with anyio.create_task_group() as paying:
            paying.start_soon(points.drain_until_stopped, name="drain points")
            await _read(vitals, intakes, points)
            serving.deadline = anyio.current_time() + FINISH_S_MAX
            points.stop()
        await _finish(intakes, points)


async def _read(vitals: Vitals, intakes: list[Intake], points: PointWriter) -> None:
    """Read until all intakes have ended, and do beside it what has to be done for so long."""
    settings = vitals.settings
    async with anyio.create_task_group() as background:
        background.start_soon(_watch_stalls, settings.takeover_after_ms, name="stalls")
        background.start_soon(write_own_points, vitals, points, name="own points")
        for intake in intakes:
            background.start_soon(_upkeep, intake, settings, name=f"upkeep {intake.group.stream}")
        log.info("worker.ready", streams=settings.streams, consumer=settings.consumer)
        async with anyio.create_task_group() as reading:
            for intake in intakes:
                reading.start_soon(intake.run, name=f"intake {intake.group.stream}")
        background.cancel_scope.cancel()


@asynccontextmanager
async def _open(
    vitals: Vitals, servers: Servers, intakes: list[Intake], *, drain: bool
) -> AsyncGenerator[PointWriter]:
    """Connect, check the schema, and add an intake for each stream to `intakes`."""
    settings = vitals.settings
    alone = anyio.Lock()
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
        points = PointWriter(
            sink_of(settings),
            ledger,
            servers.influxdb,
            servers.postgres,
            left_after_ms=settings.takeover_after_ms,
        )
        stack.push_async_callback(points.aclose)
        for stream in settings.streams:
            claims = Claims(
                settings.redis_address,
                settings.claims_address,
                stream,
                settings.group,
                window_ms=settings.dedupe_window_ms,
                timeout_ms=settings.redis_timeout_ms,
            )
            stack.push_async_callback(claims.aclose)
            io = Connections(claims, ledger, points, servers, vitals.streams[stream])
            intake = Intake(io, settings, stream, alone, drain=drain)
            stack.push_async_callback(intake.group.aclose)
            intakes.append(intake)
        yield points


async def _upkeep(intake: Intake, settings: Settings) -> None:
    """Now and then: remove consumers that are long gone, trim what is settled, look for losses."""
    lost = 0
    while True:
        try:
            removed = await intake.group.remove_quiet_consumers(idle_ms_min=QUIET_CONSUMER_MS)
            if removed:
                log.info("consumers.removed", stream=intake.group.stream, consumers=removed)
            await _trim(intake.group, settings.retention_ms)
            lost = await _tell_losses(intake.group, lost)
        except (RedisUnavailable, GroupLost) as error:
            log.debug("upkeep.postponed", stream=intake.group.stream, error=str(error))
        await anyio.sleep(UPKEEP_EVERY_S)


async def _trim(group: Group, retention_ms: int | None) -> None:
    """Trim settled entries older than that, by their ids and the wall clock."""
    if retention_ms is None:
        return
    trimmed, before_ms = 0, max(0, int(time.time() * 1000) - retention_ms)
    while went := await group.trim(before_ms):
        trimmed += went
    if trimmed:
        log.info("entries.trimmed", stream=group.stream, entries=trimmed)


async def _tell_losses(group: Group, told: int) -> int:
    """Log entries that went before anybody read them, once for each time that they become more."""
    lost = (await group.progress()).lost or 0
    if lost > told:
        log.error("entries.lost_before_reading", stream=group.stream, entries=lost)
    return lost


async def _watch_stalls(takeover_after_ms: int) -> None:
    """Log when this process stood still so long that others may have taken over what it holds.

    Harmless to the outcomes, for Postgres decides; but it looks like a fault of something else.
    """
    beat_s = min(BEAT_S_MAX, takeover_after_ms / 8000)
    last = anyio.current_time()
    while True:
        await anyio.sleep(beat_s)
        now = anyio.current_time()
        still_ms = round((now - last) * 1000)
        if still_ms >= takeover_after_ms:
            log.warning("worker.stalled", still_ms=still_ms, takeover_after_ms=takeover_after_ms)
        last = now


async def _finish(intakes: list[Intake], points: PointWriter) -> None:
    """Pay what can be paid at once and leave the groups; whatever fails is done by the next worker."""
    for step in (points.finish, *(intake.group.leave for intake in intakes)):
        try:
            await step()
        except (InfluxUnavailable, RedisUnavailable, GroupLost, PostgresUnavailable) as error:
            log.info("finish.left_to_the_next_worker", error=str(error))
