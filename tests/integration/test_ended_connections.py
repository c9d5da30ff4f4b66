"""A connection to Postgres that was told of its end, and whose end has not come yet."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest

from tests.isolation import Place
from worker.errors import PostgresUnavailable
from worker.ledger import Ledger

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
WITHIN_S = 30


class HalfOpen:
    """Passes everything on between a client and a server, except that the server has hung up."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""
        self.hung_up = anyio.Event()  #: set when all that the server said has been passed on

    @classmethod
    @asynccontextmanager
    async def before(cls, url: str) -> AsyncGenerator["HalfOpen"]:
        """Stand before the server of that URL while the block runs."""
        relay = cls(url)
        listener = await asyncio.start_server(relay._carry, HOST, 0)
        port = listener.sockets[0].getsockname()[1]
        login = f"{relay._server.username}:{relay._server.password}"
        relay.url = relay._server._replace(netloc=f"{login}@{HOST}:{port}").geturl()
        try:
            yield relay
        finally:
            listener.close()
            for writer in relay._writers:
                writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(
            self._server.hostname, self._server.port
        )
        self._writers += [writer, to_server]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pump, reader, to_server)
            await self._pump(from_server, writer)
            self.hung_up.set()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


async def test_a_connection_told_of_its_end_is_postgres_being_away_and_not_a_bug(
    place: Place,
) -> None:
    async with HalfOpen.before(place.settings.database_address) as relay:
        ledger = Ledger(relay.url, place.schema, timeout_ms=10_000)
        try:
            pid = await backend(ledger)
            await place.fetch("SELECT pg_terminate_backend($1)", pid)
            with anyio.fail_after(WITHIN_S):
                await relay.hung_up.wait()
            with pytest.raises(PostgresUnavailable):
                await backend(ledger)
            assert await backend(ledger) != pid
        finally:
            await ledger.aclose()


async def backend(ledger: Ledger) -> int:
    async with ledger.connection() as connection:
        return await connection.fetchval("SELECT pg_backend_pid()")
