"""What may happen to a Postgres: away, refusing, full, locked, and answers that are lost."""

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, cast

import anyio
import asyncpg
from anyio import to_thread

from tests.chaos.scene import Scene

Fault = Callable[[Scene, Random], Awaitable[None]]

WORKERS = "FROM pg_stat_activity WHERE application_name = 'ordergate'"
GREETING = (
    b"\0\0\0\x25\0\3\0\0user\0tbot\0database\0tbot_dev\0\0"  # a start-up message, protocol 3.0
)
CONNECTIONS_MAX = 1_000  #: more than the server takes

#: The server itself refuses every second batch, as it does two that cannot be put in an order.
UNSERIALIZABLE = """
CREATE FUNCTION chaos() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.5 THEN
        RAISE EXCEPTION 'could not serialize access' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION chaos();
"""


async def killed(scene: Scene, _chance: Random) -> None:
    """SIGKILL of every process, and started again."""
    await to_thread.run_sync(scene.postgres.kill)
    await to_thread.run_sync(scene.postgres.start)


async def stopped(scene: Scene, chance: Random) -> None:
    """Stopped for a while."""
    await to_thread.run_sync(scene.postgres.stop)
    await anyio.sleep(chance.uniform(0.2, 3))
    await to_thread.run_sync(scene.postgres.start)


async def hung(scene: Scene, chance: Random) -> None:
    """Accepts connections and answers nothing."""
    scene.postgres.pause()
    await anyio.sleep(chance.uniform(0.2, 4))
    scene.postgres.resume()


async def read_only(scene: Scene, chance: Random) -> None:
    """Takes no writes, as one that became a standby."""
    async with admin(scene) as postgres:
        await postgres.execute("SET default_transaction_read_only = off")
        await _alter(postgres, "SET default_transaction_read_only = on")
        await anyio.sleep(chance.uniform(0.5, 3))
        await _alter(postgres, "RESET default_transaction_read_only")


async def unserializable(scene: Scene, chance: Random) -> None:
    """Every second batch is refused with a serialization failure."""
    async with admin(scene) as postgres:
        await postgres.execute(UNSERIALIZABLE)
        await anyio.sleep(chance.uniform(0.5, 2))
        await postgres.execute("DROP TRIGGER chaos ON orders; DROP FUNCTION chaos()")


async def locked(scene: Scene, chance: Random) -> None:
    """A table is locked, for longer than workers wait or not."""
    async with admin(scene) as postgres, postgres.transaction():
        table = chance.choice(("orders", "duplicates", "rejections", "point_backlog"))
        await postgres.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        await anyio.sleep(chance.uniform(0.2, 3))


async def deadlocked(scene: Scene, _chance: Random) -> None:
    """Others lock tables the other way round, and a worker is the one that is told so."""
    async with admin(scene) as postgres:
        await _alter(
            postgres, "SET deadlock_timeout = '600ms'"
        )  # of workers: half of their patience
        await postgres.execute("SET deadlock_timeout = '10s'")
        for _ in range(3):
            async with postgres.transaction():
                await postgres.execute("LOCK TABLE duplicates IN EXCLUSIVE MODE")
                await anyio.sleep(
                    0.3
                )  # a worker has rows in orders by now and waits for duplicates
                await postgres.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        await _alter(postgres, "RESET deadlock_timeout")


async def terminated(scene: Scene, chance: Random) -> None:
    """Closes every connection of workers, several times."""
    async with admin(scene) as postgres:
        for _ in range(10):
            await postgres.execute(f"SELECT pg_terminate_backend(pid) {WORKERS}")
            await anyio.sleep(chance.uniform(0.01, 0.2))


async def cancelled(scene: Scene, chance: Random) -> None:
    """Cancels every statement of workers, several times."""
    async with admin(scene) as postgres:
        for _ in range(10):
            await postgres.execute(f"SELECT pg_cancel_backend(pid) {WORKERS}")
            await anyio.sleep(chance.uniform(0.01, 0.2))


async def commit_unanswered(scene: Scene, chance: Random) -> None:
    """Commits, and closes the connection instead of saying so: it waits for a standby that is none."""
    async with admin(scene) as postgres:
        await _alter(postgres, "SET synchronous_standby_names = 'nobody'")
        with anyio.move_on_after(chance.uniform(1, 3)):
            while True:
                await postgres.execute(
                    f"SELECT pg_terminate_backend(pid) {WORKERS} AND wait_event = 'SyncRep'"
                )
                await anyio.sleep(0.05)
        await _alter(postgres, "RESET synchronous_standby_names")


async def crowded(scene: Scene, chance: Random) -> None:
    """Has no connection left."""
    async with admin(scene) as postgres:
        with _connections(scene.postgres.port):
            await postgres.execute(f"SELECT pg_terminate_backend(pid) {WORKERS}")
            await anyio.sleep(chance.uniform(0.5, 2))


async def disk_full(scene: Scene, chance: Random) -> None:
    """The file system of the tables has no room left."""
    assert scene.disk
    ballast = scene.disk / "ballast"
    try:
        await to_thread.run_sync(_fill, ballast)
        await anyio.sleep(chance.uniform(1, 4))
    finally:
        ballast.unlink()


POSTGRES_FAULTS: Mapping[str, Fault] = {
    "killed": killed,
    "stopped": stopped,
    "hung": hung,
    "read-only": read_only,
    "serialization failures": unserializable,
    "table locked": locked,
    "deadlocks": deadlocked,
    "connections cut": terminated,
    "statements cancelled": cancelled,
    "commits unanswered": commit_unanswered,
    "too many connections": crowded,
    "disk full": disk_full,
}


@asynccontextmanager
async def admin(scene: Scene) -> AsyncGenerator[Any]:
    """One connection, made before the fault and kept through it. Its own end is no failure of a run."""
    settings = {"search_path": scene.place.schema, "application_name": "chaos"}
    postgres = await cast("Any", asyncpg.connect)(
        scene.postgres.url, timeout=10, command_timeout=30, server_settings=settings
    )
    try:
        yield postgres
    finally:
        postgres.terminate()


async def _alter(postgres: Any, change: str) -> None:  # noqa: ANN401 - asyncpg's types are incomplete
    """Change the server's settings for every session; those read at its start need new ones."""
    await postgres.execute(f"ALTER SYSTEM {change}")
    await postgres.execute("SELECT pg_reload_conf()")
    if "default_transaction" in change:
        await postgres.execute(f"SELECT pg_terminate_backend(pid) {WORKERS}")


@contextmanager
def _connections(port: int) -> Generator[None]:
    """Take every connection that is left, without logging in: one that asks for it has a place."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            link.sendall(GREETING)
            if link.recv(1) == b"E":  # too many clients already
                break
        yield


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
