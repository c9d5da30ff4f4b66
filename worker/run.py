"""What the commands `worker` and `migrate` do: settings, logs, an event loop, and embedded servers."""

import gc
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from pathlib import Path

import anyio
import structlog

from worker import logs, settings
from worker.errors import NoAnswer, OrdergateError, PostgresUnavailable
from worker.ledger import Ledger
from worker.migrate import Migration, migrate
from worker.service import serve
from worker.settings import Settings

log = structlog.stdlib.get_logger("worker")


def run_worker(*, embedded: str | None, drain: bool) -> int:
    """Run a worker until a signal, or until its streams are drained.

    :param embedded: a directory for servers of its own, started before and stopped after
    """
    with ExitStack() as stack:
        chosen = _embedded(stack, Path(embedded)) if embedded else settings.load()
        logs.configure(chosen)
        for name, meant in settings.unknown_variables().items():
            log.warning("setting.unknown", variable=name, meant=meant)
        gc.freeze()  # what is loaded by now stays: no collection needs to go through it
        in_loop(lambda: _serve(chosen, own_servers=bool(embedded), drain=drain))
    return 0


def run_migrate() -> int:
    """Bring the schema up to date, and say what was done."""
    chosen = settings.load()
    logs.configure(chosen)
    applied: list[Migration] = []

    async def apply() -> None:
        try:
            applied.extend(await migrated(chosen))
        except PostgresUnavailable as error:
            does = "refuses" if error.answered else "does not answer"
            raise NoAnswer(f"Postgres {does}: {error}") from error

    in_loop(apply)
    for migration in applied:
        print(f"applied {migration.version:04}_{migration.name}")
    print(f"schema {chosen.database_schema} is up to date")
    return 0


def in_loop(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in an event loop of uvloop's.

    :raises OrdergateError: alone, where task groups have wrapped it up
    """
    try:
        anyio.run(main, backend_options={"use_uvloop": True})
    except BaseExceptionGroup as group:
        ours, others = group.split(OrdergateError)
        if ours is None or others is not None:
            raise
        raise _first(ours) from group


def _first(group: BaseExceptionGroup[OrdergateError]) -> OrdergateError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def ledger_of(chosen: Settings) -> AbstractAsyncContextManager[Ledger]:
    """The ledger that the settings name, closed on leaving."""
    timeout_ms = chosen.postgres_timeout_ms
    return aclosing(Ledger(chosen.database_address, chosen.database_schema, timeout_ms=timeout_ms))


async def migrated(chosen: Settings) -> list[Migration]:
    """Migrate the schema of `chosen`; gives what was applied."""
    async with ledger_of(chosen) as ledger:
        return await migrate(ledger, chosen.database_schema)


async def _serve(chosen: Settings, *, own_servers: bool, drain: bool) -> None:
    if own_servers:
        await migrated(chosen)
    await serve(chosen, drain=drain)


def _embedded(stack: ExitStack, directory: Path) -> Settings:
    from worker.embedded import embedded_services  # noqa: PLC0415 - the wheels are an extra

    services = stack.enter_context(embedded_services(directory))
    given = {**os.environ, "REDIS_URL": services.redis_url, "DATABASE_URL": services.database_url}
    if not os.environ.get("INFLUXDB_URL"):
        given["INFLUXDB_URL"] = services.points_url
    for name in ("REDIS_URL", "DATABASE_URL", "INFLUXDB_URL"):
        print(f"{name}={given[name]}", flush=True)
    sys.stdout.flush()
    return settings.load(given)
