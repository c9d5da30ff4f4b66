"""How we talk to Postgres: our errors for asyncpg's, and a few connections that stay open between batches.

Not asyncpg's pool: lending a connection takes it a task and several turns of the event loop, in which other
batches compute, and Postgres waits for the next one.
"""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias, cast

import anyio
import asyncpg

from worker.errors import BadSettings, PostgresRefused, PostgresUnavailable, RowRefused

#: SQLSTATE classes of trouble that passes: connection, rollback (deadlock), resources, operator, system.
#: 25006 is a server that became a replica. Source: PostgreSQL manual, Appendix A.
NOT_NOW = {"08", "40", "53", "55", "57", "58"}
READ_ONLY = "25006"
#: SQLSTATE classes that blame a row: data, constraint, program limit.
ROW_REFUSED = {"22", "23", "54"}
#: SQLSTATEs that only the operator mends: authorization, no such database, a right that is missing, prepared
#: statements that a pooler mixes up, what a trigger of his own raises.
REFUSED = ("28", "3D", "42501", "42P05", "26000", "P0001")

CLOSE_S_MAX = 0.25  #: seconds for connections to close as they should
BROKEN = OSError, asyncpg.PostgresError, asyncpg.InterfaceError  #: what closing one may meet

#: An `asyncpg.Connection`, whose own annotations leave every row an error of strict type checking.
Connection: TypeAlias = Any


def sqlstate(error: asyncpg.PostgresError) -> str:
    """The error's SQLSTATE; "" where asyncpg has none."""
    return getattr(error, "sqlstate", None) or ""


@contextmanager
def postgres_errors() -> Generator[None]:
    """Raise our errors for asyncpg's, told apart by SQLSTATE and never by message text.

    :raises PostgresUnavailable: it passes; a commit may or may not have happened
    :raises PostgresRefused, BadSettings: the operator must act
    :raises RowRefused: the data of a row cannot be stored, and nothing was
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        state = sqlstate(error)
        if state == READ_ONLY or state[:2] in NOT_NOW:
            raise PostgresUnavailable(f"{state} {error}", answered=_said(error)) from error
        if state.startswith(REFUSED):
            raise PostgresRefused(f"Postgres refuses: {error}") from error
        if state[:2] in ROW_REFUSED:
            raise RowRefused(f"{state} {error}") from error
        raise
    except asyncpg.ClientConfigurationError as error:
        raise BadSettings(f"DATABASE_URL: {error}") from error
    except OSError as error:  # TimeoutError is one
        raise PostgresUnavailable(f"{type(error).__name__}: {error}") from error


def _said(error: asyncpg.PostgresError) -> bool:
    """Whether the server did. A connection that broke is asyncpg's own error, caused by what came before."""
    broke = isinstance(error, asyncpg.ConnectionDoesNotExistError)
    return isinstance(error.__cause__ if broke else error, asyncpg.PostgresError)


class Postgres:
    """Connections whose search path is one schema, each made when it is needed first.

    :param timeout_ms: bound on connecting, and on each statement
    :param connections_max: connections at once; who wants one more waits for one of them
    """

    def __init__(self, url: str, schema: str, *, timeout_ms: int, connections_max: int) -> None:
        self._room = anyio.Semaphore(connections_max, fast_acquire=True)
        self._idle: list[Connection] = []
        self._how: dict[str, Any] = {
            "dsn": url,
            "timeout": timeout_ms / 1000,
            "command_timeout": timeout_ms / 1000,
            "server_settings": {
                "search_path": schema,
                "application_name": "ordergate",
                "timezone": "UTC",
                "jit": "off",
                # Who waited for a lock sees what was committed meanwhile, whatever a database's default is.
                "default_transaction_isolation": "read committed",
                "statement_timeout": str(timeout_ms),
                "idle_in_transaction_session_timeout": str(2 * timeout_ms),
            },
        }

    async def aclose(self) -> None:
        """Close all connections; those of a server that does not answer are dropped after a moment."""
        await _close(self._idle)
        self._drop_idle()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection for one transaction; used again unless it failed otherwise than at a row's data.

        :raises PostgresUnavailable, RowRefused: see `postgres_errors`
        """
        async with self._room:
            with postgres_errors():
                connection = self._kept() or await self._connect()
            sound = False
            try:
                with postgres_errors(), _ends(connection):
                    yield connection
                sound = True
            except RowRefused:
                sound = True
                raise
            except PostgresUnavailable:  # the others may lead to the same replica
                self._drop_idle()
                raise
            except anyio.get_cancelled_exc_class():
                await _close([connection])
                raise
            finally:
                if sound:
                    self._idle.append(connection)
                else:
                    connection.terminate()

    async def _connect(self) -> Connection:
        return await cast("Any", asyncpg.connect)(**self._how)

    def _kept(self) -> Connection | None:
        while self._idle:
            if not (connection := self._idle.pop()).is_closed():
                return connection
        return None

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()


@contextmanager
def _ends(connection: Connection) -> Generator[None]:
    """Take it for the server being away that a connection is closed; else such an error is a bug of ours."""
    try:
        yield
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if not connection.is_closed():
            raise
        raise PostgresUnavailable(str(error)) from error


async def _close(connections: Sequence[Connection]) -> None:
    """Close them as they should be, within a bound; asyncpg has Postgres cancel what still runs there."""
    with anyio.move_on_after(CLOSE_S_MAX, shield=True), suppress(*BROKEN):
        for connection in connections:
            await connection.close()
